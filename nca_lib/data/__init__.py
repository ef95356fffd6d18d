"""Images to learn from: what ships, what is drawn, public data sets, and one's own."""

from nca_lib.data.bcss import BCSS
from nca_lib.data.celeba import CelebA
from nca_lib.data.digits import Digits
from nca_lib.data.faces import Faces
from nca_lib.data.folder import Folder
from nca_lib.data.images import Images, Split, Stream, random_crop, to_float
from nca_lib.data.slides import Slides
from nca_lib.data.tissue import Tissue, TissueScales
from nca_lib.errors import DataError

__all__ = [
    "BCSS",
    "CelebA",
    "DataError",
    "Digits",
    "Faces",
    "Folder",
    "Images",
    "Slides",
    "Split",
    "Stream",
    "Tissue",
    "TissueScales",
    "random_crop",
    "to_float",
]
