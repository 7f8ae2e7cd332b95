"""The script `kills`, for `yt8m extract` with an extractor that needs no weights."""

from tests.support import kills
from tests.support.extractors import PlainExtractor
from yt8m.cli import extraction

if __name__ == "__main__":
    extraction.load_extractor = lambda accelerator, weights: PlainExtractor()  # type: ignore[assignment,return-value]
    kills.main()
