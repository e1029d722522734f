"""The devices of a topology at work: pjrt's classes over XLA:CPU, one CPU device a NeuronCore."""

from .client import Client as Client
from .topology import TopologyDescription as TopologyDescription
