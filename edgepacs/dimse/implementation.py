"""How EdgePACS names itself on an association (PS3.7 D.3.3.2)."""

from edgepacs import __version__

# PS3.5 B.2: a UID derived from a UUID, fixed for the life of the product.
CLASS_UID = "2.25.80658443256400882759509627609325372416"
VERSION = f"EDGEPACS_{__version__}"[:16]
