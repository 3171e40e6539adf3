"""The pytest plugin: the only modules that import pytest."""
