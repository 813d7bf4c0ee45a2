#!/usr/bin/env python3
"""Makes the scans of the demonstration's share anew: scans.py SHARE (needs Pillow and Debian's fonts-dejavu-core, fonts-liberation2).

They are committed, so that a demonstration needs neither; this says where they come from and lets them be changed.
Everything follows from one seed. Pages are small (A5, 150 to 200 dpi) to keep the repository small.
"""

import io
import pathlib
import random
import struct
import sys
import zlib

from PIL import Image, ImageDraw, ImageFilter, ImageFont

FONTS = pathlib.Path("/usr/share/fonts/truetype")
SERIF = FONTS / "liberation2/LiberationSerif-Regular.ttf"
SANS = FONTS / "liberation2/LiberationSans-Regular.ttf"
BOLD = FONTS / "liberation2/LiberationSans-Bold.ttf"
MONO = FONTS / "dejavu/DejaVuSansMono.ttf"
PAPER = 250

SWEEP = """Chimney report, 12 November 2019

House: Lindenweg 14, first floor
Owner: Mrs E. Varga

The flue was swept on all three floors and is free
again. About two litres of soot were taken out at the
foot, more than last year, because the wood was damp:
it should lie under a roof for two summers before it
is burned.

The tile above the hearth has a crack of 4 cm. It is
no danger yet, but must be sealed before the frost.
The draught was measured at 12 pascals with the door
closed, which is within the rule (8 to 20 pascals).

Next visit: May 2020. Amount due: 64.80 euros.

T. Brandt, master chimney sweep"""

RECEIPT = [
    "   HARDWARE KOWALSKI",
    "  Station Road 3, Tel 48211",
    "",
    "Pipe insulation 22mm x4",
    "                     15.96",
    "Radiator key          2.49",
    "Silicone, white       6.90",
    "Screws 4x40, 100      4.35",
    "Masking tape          3.20",
    "----------------------------",
    "TOTAL EUR            32.90",
    "CASH                 40.00",
    "CHANGE                7.10",
    "",
    " 14.02.2026  10:42  Till 2",
    "  Thank you, come again!",
]

LEFT = """The garden club met on Thursday in the old school. Fourteen people came, although it rained, and the soup was gone
by eight. The treasurer reported a balance of 412 euros; the new water butt has been paid for and holds 300 litres.
Two beds by the south wall are free from April. Whoever wants one should write to Anna before the end of March."""
RIGHT = """On the second Saturday in May we exchange seedlings again. Please bring them in pots with a label: last year three
kinds of tomato turned out to be four kinds of pumpkin. The tool shed has a new lock. Its number is known to the
committee and will not be printed here. The hedge along the lane is to be cut after the birds have left, not before."""

SIDEWAYS = """PARCEL NOT DELIVERED

We called on Tuesday at 11:20 and nobody
was at home. Your parcel waits at the
bakery, Mill Street 9, until 3 March.

Please bring this card and a passport.
Number: DX 7741 0932 6650"""

POLICY = [
    "Household insurance: what is covered",
    "",
    "Policy HI-20417, valid from 1 January 2026.",
    "Fire, lightning, burst pipes and storms of force 8 or more",
    "are covered up to 85,000 euros. Bicycles are covered if they",
    "were locked, between 6 in the morning and 10 at night.",
    "",
    "Not covered: floods from rivers, and whatever the cat did.",
    "",
    "The second page is the signed form as it came by post.",
]
FORM = """DECLARATION OF THE INSURED

I confirm that the chimney was last swept on
12 November 2019 and that smoke alarms hang in
all bedrooms and in the corridor.

Place and date: Harbour Street, 9 January 2026

Signed: E. Varga"""


def page(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, leading: float) -> None:
    x, y = at
    for line in text.split("\n"):
        draw.text((x, y), line, font=font, fill=25)
        y += round(font.size * leading)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > width and line:
            lines.append(line)
            line = word
        else:
            line = longer
    return "\n".join([*lines, line])


def scanned(image: Image.Image, rng: random.Random, angle: float, noise: int) -> Image.Image:
    """A page as a scanner sees it: a little turned, a little soft, a little dirty, in 16 greys."""
    image = image.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=PAPER)
    image = image.filter(ImageFilter.GaussianBlur(0.6))
    pixels = image.load()
    for _ in range(image.width * image.height // 400):
        x, y = rng.randrange(image.width), rng.randrange(image.height)
        pixels[x, y] = max(0, min(255, pixels[x, y] + rng.randint(-noise, noise)))
    return image.quantize(16, dither=Image.Dither.NONE)


def sweep(rng: random.Random) -> Image.Image:
    image, draw = page(1000, 1300)
    write(draw, (90, 90), SWEEP, ImageFont.truetype(str(SERIF), 34), 1.5)
    return scanned(image, rng, 0.7, 90)


def receipt(rng: random.Random) -> Image.Image:
    image, draw = page(560, 780)
    write(draw, (35, 40), "\n".join(RECEIPT), ImageFont.truetype(str(MONO), 28), 1.5)
    # A photograph: light falls from one side.
    shade = Image.linear_gradient("L").rotate(90).resize(image.size).point(lambda v: 255 - v // 4)
    image = Image.composite(image, Image.new("L", image.size, 0), shade)
    return image.rotate(-0.8, resample=Image.Resampling.BICUBIC, fillcolor=190).convert("RGB")


def newsletter() -> Image.Image:
    image, draw = page(1300, 1000)
    draw.text((90, 60), "Garden club, news of March", font=ImageFont.truetype(str(BOLD), 44), fill=0)
    font = ImageFont.truetype(str(SANS), 30)
    write(draw, (90, 170), wrapped(LEFT, font, 510), font, 1.45)
    write(draw, (700, 170), wrapped(RIGHT, font, 510), font, 1.45)
    return image.point(lambda v: 255 if v > 140 else 0).convert("1")


def sideways(rng: random.Random) -> Image.Image:
    image, draw = page(1000, 620)
    write(draw, (70, 70), SIDEWAYS, ImageFont.truetype(str(SANS), 40), 1.6)
    return scanned(image, rng, 0.0, 60).convert("L").rotate(90, expand=True).quantize(8, dither=Image.Dither.NONE)


def pdf(rng: random.Random) -> bytes:
    """Two pages: one with text of its own in a standard font, one that is a picture."""
    image, draw = page(870, 620)
    write(draw, (60, 60), FORM, ImageFont.truetype(str(SERIF), 34), 1.6)
    scan = io.BytesIO()
    scanned(image, rng, -0.5, 70).convert("L").save(scan, "JPEG", quality=45)
    text = ["BT /F1 16 Tf 60 520 Td 24 TL"]
    for number, line in enumerate(POLICY):
        if number == 1:
            text.append("/F1 12 Tf 18 TL")
        escaped = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        text.append(f"({escaped}) '")
    text.append("ET")
    words = zlib.compress("\n".join(text).encode())
    place = b"q 420 0 0 299.3 0 148 cm /Im1 Do Q"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 595] /Contents 5 0 R /Resources << /Font << /F1 6 0 R >> >> >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 595] /Contents 7 0 R /Resources << /XObject << /Im1 8 0 R >> >> >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(words), words),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(place), place),
        b"<< /Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Filter /DCTDecode /Length %d >>\nstream\n%s\nendstream"
        % (image.width, image.height, len(scan.getvalue()), scan.getvalue()),
    ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(out)


def bomb() -> bytes:
    """A picture of a few bytes that claims 100,000 by 100,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def main() -> None:
    share = pathlib.Path(sys.argv[1])
    scans = share / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    rng = random.Random(20261121)
    sweep(rng).save(scans / "chimney-2019.png", optimize=True, dpi=(150, 150))
    receipt(rng).save(scans / "receipt hardware.jpg", quality=55, optimize=True, dpi=(200, 200))
    newsletter().save(scans / "garden-club.tif", compression="group4", dpi=(150, 150))
    sideways(rng).save(scans / "parcel-card.png", optimize=True, dpi=(150, 150))
    (scans / "insurance.pdf").write_bytes(pdf(rng))
    (share / "old" / "poster.png").write_bytes(bomb())


if __name__ == "__main__":
    main()
