"""The version of antiphon, all three packages together: the only place where it is written.

`pyproject.toml` reads it from here. Code reads it here too, not from installed metadata: in a Ray job the packages lie
in the job's folder, and of an editable install the metadata are those of the day it was made.
"""

VERSION = "0.1.0"
