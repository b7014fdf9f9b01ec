"""Old name of the files of this room; goes as soon as nobody imports it."""

from saol_lib.data import *  # noqa: F403
