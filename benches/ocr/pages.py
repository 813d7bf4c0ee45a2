#!/usr/bin/env python3
"""Makes scanned-looking pages at 200 dpi with the text that stands on them.

pages.py --seed N --out DIR [--pages N] [--kinds clean,degraded,…]

Writes KIND-SEED-NN.png and KIND-SEED-NN.gt.txt: the text line by line in reading order, an empty line between blocks. Kinds:

  clean      one column of prose, as a printer would show it
  degraded   the same, blurred, noisy, askew by up to 1.5 degrees, pale, unevenly lit, through JPEG
  receipt    a narrow slip: monospaced, prices at the right edge
  columns    two columns of prose below a title across both
  invoice    sender, receiver beside details, a table, totals, small print
  turned90, turned180, turned270   pages of the five kinds above that lie on a side or on their head

Fonts come from the Debian packages fonts-liberation2, fonts-dejavu-core, fonts-freefont-ttf and fonts-urw-base35. The same seed gives the
same pages on the same version of Pillow.
"""

import argparse
import io
import pathlib
import random

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from material import GOODS, SERVICES, Writer

DPI = 200
A4 = (1654, 2339)
FOLDERS = {
    "liberation2": pathlib.Path("/usr/share/fonts/truetype/liberation2"),
    "dejavu": pathlib.Path("/usr/share/fonts/truetype/dejavu"),
    "freefont": pathlib.Path("/usr/share/fonts/truetype/freefont"),
    "urw": pathlib.Path("/usr/share/fonts/opentype/urw-base35"),
}
# Regular, bold.
TEXT_FACES = [
    ("liberation2", "LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf"),
    ("liberation2", "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"),
    ("dejavu", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("dejavu", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    ("freefont", "FreeSerif.ttf", "FreeSerifBold.ttf"),
    ("urw", "P052-Roman.otf", "P052-Bold.otf"),
    ("urw", "C059-Roman.otf", "C059-Bold.otf"),
    ("urw", "URWBookman-Light.otf", "URWBookman-Demi.otf"),
    ("urw", "NimbusSansNarrow-Regular.otf", "NimbusSansNarrow-Bold.otf"),
]
MONO_FACES = [
    ("liberation2", "LiberationMono-Regular.ttf", "LiberationMono-Bold.ttf"),
    ("dejavu", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    ("freefont", "FreeMonoBold.ttf", "FreeMonoBold.ttf"),
    ("urw", "NimbusMonoPS-Bold.otf", "NimbusMonoPS-Bold.otf"),
]


class Sheet:
    """A white sheet, and the text written on it so far."""

    def __init__(self, size: tuple[int, int]):
        self.image = Image.new("L", size, 255)
        self.pen = ImageDraw.Draw(self.image)
        self.blocks: list[list[str]] = [[]]

    def block(self) -> None:
        if self.blocks[-1]:
            self.blocks.append([])

    def write(self, x: float, y: float, text: str, font: ImageFont.FreeTypeFont, align: str = "left", ink: int = 0) -> None:
        left = {"left": x, "right": x - font.getlength(text), "centre": x - font.getlength(text) / 2}[align]
        self.pen.text((left, y), text, font=font, fill=ink)

    def spread(self, x: float, y: float, words: list[str], width: float, font: ImageFont.FreeTypeFont) -> None:
        """Writes words with equal gaps so that they fill the width."""
        free = width - sum(font.getlength(word) for word in words)
        gap = free / max(1, len(words) - 1)
        for word in words:
            self.pen.text((x, y), word, font=font, fill=0)
            x += font.getlength(word) + gap

    def note(self, line: str) -> None:
        self.blocks[-1].append(" ".join(line.split()))

    def text(self) -> str:
        return "\n\n".join("\n".join(block) for block in self.blocks if block) + "\n"


def face(draw: random.Random, faces: list, points: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    folder, regular, heavy = draw.choice(faces)
    path = FOLDERS[folder] / (heavy if bold else regular)
    return ImageFont.truetype(str(path), round(points * DPI / 72), layout_engine=ImageFont.Layout.BASIC)


def broken(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[list[str]]:
    """Words of each line."""
    lines, line = [], []
    for word in text.split():
        if line and font.getlength(" ".join([*line, word])) > width:
            lines.append(line)
            line = []
        line.append(word)
    return [*lines, line] if line else lines


def prose(sheet: Sheet, writer: Writer, font, box: tuple[float, float, float, float], leading: float, justified: bool) -> None:
    """Fills a box (left, top, right, bottom) with paragraphs."""
    left, y, right, bottom = box
    while y + leading < bottom:
        sheet.block()
        lines = broken(writer.paragraph(writer.random.randint(2, 6)), font, right - left)
        for index, words in enumerate(lines):
            if y + leading > bottom:
                return
            if justified and index + 1 < len(lines):
                sheet.spread(left, y, words, right - left, font)
            else:
                sheet.write(left, y, " ".join(words), font)
            sheet.note(" ".join(words))
            y += leading
        y += leading * 0.55


def clean(draw: random.Random) -> Sheet:
    sheet, writer = Sheet(A4), Writer(draw)
    points = draw.uniform(9.5, 12.5)
    font = face(draw, TEXT_FACES, points)
    margin = draw.uniform(130, 230)
    top = draw.uniform(130, 220)
    if draw.random() < 0.6:
        title = face(draw, TEXT_FACES, points * 1.6, bold=True)
        text = writer.title()
        sheet.write(A4[0] / 2, top, text, title, align="centre")
        sheet.note(text)
        top += points * DPI / 72 * 2.8
    leading = points * DPI / 72 * draw.uniform(1.2, 1.5)
    prose(sheet, writer, font, (margin, top, A4[0] - margin, A4[1] - draw.uniform(150, 260)), leading, draw.random() < 0.5)
    return sheet


def columns(draw: random.Random) -> Sheet:
    sheet, writer = Sheet(A4), Writer(draw)
    points = draw.uniform(8.5, 10.5)
    font, title = face(draw, TEXT_FACES, points), face(draw, TEXT_FACES, points * 1.9, bold=True)
    margin, gutter = draw.uniform(110, 170), draw.uniform(38, 80)
    y = draw.uniform(110, 180)
    text = writer.title()
    sheet.write(margin, y, text, title)
    sheet.note(text)
    y += points * 1.9 * DPI / 72 * 1.7
    width = (A4[0] - 2 * margin - gutter) / 2
    leading, justified = points * DPI / 72 * draw.uniform(1.18, 1.35), draw.random() < 0.6
    bottom = A4[1] - draw.uniform(130, 240)
    for left in (margin, margin + width + gutter):
        prose(sheet, writer, font, (left, y, left + width, bottom), leading, justified)
    return sheet


def receipt(draw: random.Random) -> Sheet:
    writer = Writer(draw)
    goods = draw.sample(GOODS, draw.randint(8, 22))
    width = draw.randint(34, 42)
    which, points = draw.choice(MONO_FACES), draw.uniform(8, 10)
    font, bold = face(draw, [which], points), face(draw, [which], points * draw.choice([1.0, 1.4]), bold=True)
    leading = round(points * DPI / 72 * draw.uniform(1.15, 1.4))
    step = font.getlength("0")
    margin = draw.uniform(25, 60)
    sheet = Sheet((round(step * width + 2 * margin), (len(goods) + 26) * leading))
    middle, right = sheet.image.width / 2, margin + step * width
    y = draw.uniform(30, 70)

    def centred(text: str, font=font) -> None:
        nonlocal y
        sheet.write(middle, y, text, font, align="centre")
        sheet.note(text)
        y += leading * (1.4 if font is bold else 1)

    def row(name: str, value: str, font=font) -> None:
        nonlocal y
        sheet.write(margin, y, name, font)
        sheet.write(right, y, value, font, align="right")
        sheet.note(f"{name} {value}")
        y += leading

    centred(writer.shop().upper(), bold)
    centred(writer.street())
    centred(f"{draw.randint(10000, 99999)} {draw.choice(['Ashford', 'Bergen', 'Hamburg', 'Vienna'])}")
    centred(f"Tel. {draw.randint(100, 999)}-{draw.randint(1000, 9999)}")
    y += leading
    row(writer.date(), f"{draw.randint(6, 22):02}:{draw.randint(0, 59):02}")
    row(f"Receipt {draw.randint(1000, 99999)}", f"Cashier {draw.randint(1, 12)}")
    y += leading * 0.6
    sheet.block()
    total = 0.0
    style = draw.choice([str.upper, str.title, Writer.upper])
    for good in goods:
        price = writer.price(18)
        name = style(" ".join(good.split()))
        if draw.random() < 0.25:
            count = draw.randint(2, 6)
            row(name, "")
            name, price = f"  {count} x {price:.2f}", price * count
        total += price
        row(name, f"{price:.2f}" + draw.choice(["", "", " A", " B"]))
    sheet.block()
    y += leading * 0.5
    row("TOTAL", f"{total:.2f}", bold)
    y += leading * 0.6
    row("Cash", f"{total + 10:.2f}")
    row("Change", "10.00")
    row("VAT 7.0%", f"{total * 0.07:.2f}")
    y += leading
    sheet.block()
    centred("Thank you for your visit!")
    centred(f"No. {draw.randint(10**9, 10**10 - 1)}")
    return sheet


def invoice(draw: random.Random) -> Sheet:
    sheet, writer = Sheet(A4), Writer(draw)
    faces = [draw.choice(TEXT_FACES)]
    points = draw.uniform(9, 11)
    font, bold, large = face(draw, faces, points), face(draw, faces, points, True), face(draw, faces, points * 1.9, True)
    small = face(draw, faces, 7.5)
    em = points * DPI / 72
    margin, y = draw.uniform(130, 180), draw.uniform(120, 180)
    right = A4[0] - margin

    def block(x: float, y: float, lines: list[str]) -> float:
        sheet.block()
        for line in lines:
            sheet.write(x, y, line, font)
            sheet.note(line)
            y += em * 1.35
        return y

    shop = writer.shop()
    sheet.write(margin, y, shop, large)
    sheet.note(shop)
    y = block(margin, y + em * 2.6, [writer.street(), f"{draw.randint(10000, 99999)} {draw.choice(['Leiden', 'Dover', 'Perth'])}"])
    y += em * 2.5
    end = block(margin, y, [writer.shop(), writer.person(), writer.street(), f"{draw.randint(10000, 99999)} Norwich"])
    other = block(margin + (right - margin) * 0.62, y, [f"Invoice date: {writer.date()}", f"Invoice no.: {draw.randint(10000, 99999)}",
                                                        f"Customer no.: {draw.randint(100, 9999)}"])
    y = max(end, other) + em * 2.5
    heading = f"Invoice {draw.randint(2019, 2025)}-{draw.randint(100, 999)}"
    sheet.block()
    sheet.write(margin, y, heading, face(draw, faces, points * 1.35, True))
    sheet.note(heading)
    y += em * 2.8
    sheet.block()
    for words in broken(writer.paragraph(2), font, right - margin):
        sheet.write(margin, y, " ".join(words), font)
        sheet.note(" ".join(words))
        y += em * 1.35
    y += em * 1.2
    sheet.block()
    edges = [(margin, "left"), (margin + 90, "left"), (right - 400, "right"), (right - 200, "right"), (right, "right")]
    ruled = draw.random() < 0.6

    def row(cells: list[str], font=font) -> None:
        nonlocal y
        for (x, align), cell in zip(edges, cells, strict=True):
            sheet.write(x, y, cell, font, align=align)
        sheet.note(" ".join(cells))
        y += em * 1.75
        if ruled:
            sheet.pen.line((margin, y - em * 0.3, right, y - em * 0.3), fill=0, width=2)

    row(["Pos.", "Description", "Quantity", "Unit price", "Amount"], bold)
    total = 0.0
    for index, service in enumerate(draw.sample(SERVICES, draw.randint(4, 14)), 1):
        count, price = draw.randint(1, 24), writer.price(400)
        total += count * price
        row([str(index), service.strip(), str(count), f"{price:,.2f}", f"{count * price:,.2f}"])
    y += em
    sheet.block()
    for name, value in (("Net total", total), ("VAT 19%", total * 0.19), ("Total due", total * 1.19)):
        which = bold if name == "Total due" else font
        sheet.write(right - 400, y, name, which)
        sheet.write(right, y, f"{value:,.2f}", which, align="right")
        sheet.note(f"{name} {value:,.2f}")
        y += em * 1.5
    y += em
    sheet.block()
    closing = f"Payable within {draw.choice([10, 14, 30])} days without deduction. {writer.sentence()}"
    for words in broken(closing, font, right - margin):
        sheet.write(margin, y, " ".join(words), font)
        sheet.note(" ".join(words))
        y += em * 1.35
    sheet.block()
    foot = f"Bank of {draw.choice(['Bristol', 'Geneva', 'Utrecht'])}, account {draw.randint(10**7, 10**8 - 1)}, VAT ID GB{draw.randint(10**8, 10**9 - 1)}"
    sheet.write(A4[0] / 2, A4[1] - 140, foot, small, align="centre")
    sheet.note(foot)
    return sheet


def spoiled(image: Image.Image, draw: random.Random) -> Image.Image:
    """As a bad scanner or a hurried camera would give it."""
    paper, ink = draw.randint(185, 240), draw.randint(40, 120)
    image = image.point(lambda value: ink + (paper - ink) * value // 255)
    image = image.rotate(draw.uniform(-1.5, 1.5), Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.8, 2.1)))
    # Light from one side: a tilted plane, drawn small and enlarged.
    tilt = [draw.uniform(-14, 14) for _ in range(4)]
    light = Image.new("L", (2, 2))
    light.putdata([round(128 + value) for value in tilt])
    light = light.resize(image.size, Image.Resampling.BICUBIC)
    noise = Image.frombytes("L", image.size, draw.randbytes(image.width * image.height))
    # A mean of four neighbours' noise has half its spread, as a sensor's after smoothing.
    noise = noise.filter(ImageFilter.BoxBlur(0.6))
    strength = draw.uniform(0.15, 0.55)
    table = [round((value - 128) * strength) + 128 for value in range(256)]
    image = Image.merge("L", (add(add(image, light), noise.point(table)),))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=draw.randint(15, 50))
    return Image.open(packed).convert("L")


def add(image: Image.Image, offset: Image.Image) -> Image.Image:
    """image + offset - 128, clipped."""
    from PIL import ImageChops

    return ImageChops.add(image, offset, 1, -128)


def degraded(draw: random.Random) -> Sheet:
    sheet = clean(draw)
    sheet.image = spoiled(sheet.image, draw)
    return sheet


def turned(degrees: int):
    def make(draw: random.Random) -> Sheet:
        sheet = draw.choice([clean, degraded, receipt, columns, invoice])(draw)
        sheet.image = sheet.image.rotate(-degrees, expand=True)
        return sheet

    return make


KINDS = {
    "clean": clean, "degraded": degraded, "receipt": receipt, "columns": columns, "invoice": invoice,
    "turned90": turned(90), "turned180": turned(180), "turned270": turned(270),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pages to read, and what stands on them")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--pages", type=int, default=4, help="pages of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds.split(","):
        for index in range(options.pages):
            # Each page has a source of its own, so that their number changes none of them.
            sheet = KINDS[kind](random.Random(f"{options.seed} {kind} {index}"))
            name = f"{kind}-{options.seed}-{index:02}"
            sheet.image.save(options.out / f"{name}.png", dpi=(DPI, DPI))
            (options.out / f"{name}.gt.txt").write_text(sheet.text(), encoding="utf-8")


if __name__ == "__main__":
    main()
