"""A JAX platform that is a simulated AWS Trainium3."""

from ._version import __version__ as __version__
