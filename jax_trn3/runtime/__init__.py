"""The devices of a topology at work: pjrt's classes over XLA:CPU, one CPU device a NeuronCore."""

from .ahead import compile_ahead as compile_ahead
from .client import Client as Client
from .processes import Process as Process
from .topology import TopologyDescription as TopologyDescription
