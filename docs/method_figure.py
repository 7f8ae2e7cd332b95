"""Draw the method as `images/method.svg`: `python docs/method_figure.py [FILE]`.

The picture refers to no other file, and has light and dark colors (`prefers-color-scheme`).
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).parent / "images" / "method.svg"
WIDTH, HEIGHT = 960, 500

STYLE = """\
text { font: 14px "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #24292f; }
.head { font-weight: bold; font-size: 15px; }
.note { fill: #59636e; font-size: 12.5px; font-weight: normal; }
.middle { text-anchor: middle; }
.back { fill: #fcfcfb; }
.lane { fill: #f1f3f5; }
.box { stroke-width: 1.5; fill: #dbe9f6; stroke: #1f6fb4; }
.frozen { fill: #e6e8eb; stroke: #7a828c; stroke-dasharray: 5 3; }
.new { fill: #fbe3c8; stroke: #d97706; }
.plain { fill: #ffffff; stroke: #59636e; }
.frame { fill: #c3c9d0; }
.seen { fill: #7fb0dc; }
.segment { fill: #1f6fb4; }
.arrow { stroke: #59636e; stroke-width: 1.6; fill: none; }
.tip { fill: #59636e; }
@media (prefers-color-scheme: dark) {
text { fill: #d6dbe1; }
.note { fill: #9aa4af; }
.back { fill: #0d1117; }
.lane { fill: #161c24; }
.box { fill: #17324d; stroke: #5b9bd8; }
.frozen { fill: #262d36; stroke: #8b949e; }
.new { fill: #4a3113; stroke: #e9973f; }
.plain { fill: #0d1117; stroke: #9aa4af; }
.frame { fill: #47505b; }
.seen { fill: #3d6c99; }
.segment { fill: #6fb0ec; }
.arrow { stroke: #9aa4af; }
.tip { fill: #9aa4af; }
}"""

ENCODER, FUSION, EXPERTS = 232, 410, 530
"""Left edges of the columns of boxes."""


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """A line of text; `kind` is its class."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(content)}</text>'


def box(x: float, y: float, width: float, lines: list[str], kind: str = "") -> str:
    """A box with centered lines of text; its height is 24 pixels and 18 per line."""
    height = 14 + 18 * len(lines)
    rows = [text(x + width / 2, y + 20 + 18 * number, line, "middle") for number, line in enumerate(lines)]
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="box {kind}"/>'
    return "\n".join([frame, *rows])


def arrow(*points: tuple[float, float]) -> str:
    """An arrow along points."""
    path = " L".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{path}" class="arrow" marker-end="url(#tip)"/>'


def frames(x: float, y: float, segment: bool) -> str:
    """The frames of a video, of which all are seen, or only those of a segment and its margins."""
    kinds = ["frame"] * 6 + ["seen"] * 3 + ["segment"] * 5 + ["seen"] * 3 + ["frame"] * 5 if segment else ["seen"] * 22
    return "\n".join(
        f'<rect x="{x + 8 * number}" y="{y}" width="6.5" height="20" class="{kind}"/>'
        for number, kind in enumerate(kinds)
    )


def lane(y: float, height: float, title: str, note: str) -> str:
    """The background of a classifier, with its name and how it is trained."""
    words = f'<tspan class="head">{escape(title)}</tspan><tspan class="note" dx="10">{escape(note)}</tspan>'
    return f'''<rect x="10" y="{y}" width="690" height="{height}" rx="8" class="lane"/>
<text x="24" y="{y + 24}">{words}</text>'''


def key(y: float, kind: str, meaning: str) -> str:
    """What the color of a box means."""
    return f'<rect x="764" y="{y}" width="22" height="14" rx="3" class="box {kind}"/>\n' + text(
        794, y + 12, meaning, "note"
    )


def drawing() -> list[str]:
    """The elements of the picture, top to bottom."""
    experts = ["Mixture", "of experts"]
    return [
        # The video classifier.
        lane(10, 122, "Video classifier", "pre-trained on 3.9 million videos, labelled as a whole"),
        frames(24, 66, segment=False),
        text(24, 106, "frames of the video", "note"),
        arrow((202, 76), (ENCODER - 4, 76)),
        box(ENCODER, 51, 146, ["Encoder:", "DBoF or NeXtVLAD"]),
        arrow((ENCODER + 146, 76), (EXPERTS - 4, 76)),
        box(EXPERTS, 51, 110, experts),
        arrow((EXPERTS + 110, 76), (710, 76)),
        text(718, 72, "probabilities of the"),
        text(718, 90, "video's labels"),
        # The context-agnostic classifier: the whole network is fine-tuned.
        lane(146, 122, "Context-agnostic segment classifier", "fine-tuned on rated segments"),
        frames(24, 202, segment=True),
        text(24, 242, "11 frames: segment, margins", "note"),
        arrow((202, 212), (ENCODER - 4, 212)),
        box(ENCODER, 187, 146, ["Encoder:", "DBoF or NeXtVLAD"]),
        arrow((ENCODER + 146, 212), (EXPERTS - 4, 212)),
        box(EXPERTS, 187, 110, experts),
        arrow((EXPERTS + 110, 212), (740, 212), (740, 266)),
        # The context-aware classifier.
        lane(282, 206, "Context-aware segment classifier", "new layers join the video and the segment"),
        frames(24, 342, segment=False),
        text(24, 382, "frames of the video", "note"),
        arrow((202, 352), (ENCODER - 4, 352)),
        box(ENCODER, 327, 146, ["Context encoder,", "frozen"], "frozen"),
        frames(24, 424, segment=True),
        text(24, 464, "11 frames: segment, margins", "note"),
        arrow((202, 434), (ENCODER - 4, 434)),
        box(ENCODER, 409, 146, ["Segment encoder:", "NeXtVLAD"]),
        arrow((ENCODER + 146, 352), (FUSION - 16, 352), (FUSION - 16, 386), (FUSION - 4, 386)),
        arrow((ENCODER + 146, 434), (FUSION - 16, 434), (FUSION - 16, 400), (FUSION - 4, 400)),
        box(FUSION, 368, 92, ["Fusion", "layers"], "new"),
        arrow((FUSION + 92, 393), (EXPERTS - 4, 393)),
        box(EXPERTS, 368, 110, experts, "new"),
        arrow((EXPERTS + 110, 393), (740, 393), (740, 326)),
        # The ensemble.
        box(712, 270, 112, ["Ensemble:", "mean of all"], "plain"),
        arrow((824, 295), (850, 295)),
        text(856, 273, "for each of"),
        text(856, 291, "1,000 classes"),
        text(856, 309, "the best"),
        text(856, 327, "segments"),
        # The colors.
        key(118, "", "pre-trained, fine-tuned"),
        key(142, "frozen", "pre-trained, frozen"),
        key(166, "new", "trained from scratch"),
    ]


def write_picture(path: Path) -> None:
    """Write the picture."""
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" xmlns="http://www.w3.org/2000/svg">'
    tip = '<marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    parts = [
        head,
        "<title>A video classifier, two kinds of segment classifier made from it, and their ensemble</title>",
        f"<style>\n{STYLE}\n</style>",
        f'<defs>{tip}<path d="M0 0 L10 5 L0 10 z" class="tip"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" class="back"/>',
        *drawing(),
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_picture(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
