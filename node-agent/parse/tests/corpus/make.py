"""Makes this folder's files with programs other than ours: pip install pillow reportlab pikepdf, then run it here.

The files are committed; this script says where they come from. PDF files differ from run to run in their dates and keys.
"""

import io

import pikepdf
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen import canvas

PROSE = [
    "Übung macht den Meister, sagte der Bäcker,",
    "und buk noch fünf Brötchen für 3,50 Euro.",
    "L’été déjà fini, voilà tout ce qu’il dit.",
    "The office kept its files flat and affixed.",
]


def drawing(width, height):
    """Black strokes and letters on white."""
    sheet = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=height // 5)
    pen.text((width // 20, height // 20), "Fax 204", fill=0, font=font)
    pen.ellipse((width // 2, height // 3, width - 10, height - 10), outline=0, width=3)
    for step in range(0, width, 17):
        pen.line((step, height - 1, step + 40, height // 2), fill=0, width=1 + step % 3)
    return sheet


def colours(width, height):
    """Gradients in red and green with a blue disc."""
    sheet = Image.new("RGB", (width, height))
    sheet.putdata([(x * 255 // width, y * 255 // height, 40) for y in range(height) for x in range(width)])
    ImageDraw.Draw(sheet).ellipse((10, 10, 40, 40), fill=(0, 0, 250))
    return sheet


def report(path):
    pdfmetrics.registerFont(TTFont("Vera", "Vera.ttf"))
    page = canvas.Canvas(str(path), pagesize=A4)
    for title in ("Erste Seite", "Zweite Seite"):
        page.setFont("Vera", 18)
        page.drawString(72, 760, title)
        text = page.beginText(72, 720)
        text.setFont("Times-Roman" if title.startswith("Z") else "Vera", 11)
        lines = ["Plain old type, without anything special."] * 3 if title.startswith("Z") else PROSE
        text.textLines("\n".join(lines))
        page.drawText(text)
        page.showPage()
    page.save()


def main():
    fax = drawing(240, 120).convert("1")
    fax.save("fax.png")
    for name, coding in (("mh", "tiff_ccitt"), ("g3", "group3"), ("g4", "group4")):
        fax.save(f"fax-{name}.tif", compression=coding, dpi=(204, 196))
    inverse = Image.eval(fax.convert("L"), lambda sample: 255 - sample).convert("1")
    fax.save("fax-two.tif", compression="group4", save_all=True, append_images=[inverse])
    fax.save("fax.pdf", resolution=100)

    picture = colours(64, 48)
    picture.save("picture.png", dpi=(300, 300))
    picture.save("picture.jp2", irreversible=False)
    picture.save("picture.j2k", irreversible=False, no_jp2=True)
    picture.save("picture.webp", quality=90)
    picture.convert("CMYK").save("picture-cmyk.jpg", quality=95)
    picture.save("picture-progressive.jpg", quality=95, progressive=True)
    picture.save("picture-jpeg.tif", compression="jpeg", quality=95)
    clear = picture.copy()
    clear.putalpha(255)
    clear.save("picture-jpx.pdf", resolution=72)

    report("report.pdf")
    plain = io.BytesIO()
    page = canvas.Canvas(plain, pagesize=A4)
    page.setFont("Times-Roman", 11)
    page.drawString(72, 720, "Plain old type, without anything special.")
    page.save()
    for name, settings in (
        ("encrypted-rc4", dict(R=3, owner="owner", user="", aes=False, metadata=False)),
        ("encrypted-aes128", dict(R=4, owner="owner", user="", aes=True)),
        ("encrypted-aes256", dict(R=6, owner="owner", user="", aes=True)),
        ("encrypted-password", dict(R=6, owner="owner", user="user", aes=True)),
    ):
        with pikepdf.open(plain) as pdf:
            pdf.save(f"{name}.pdf", encryption=pikepdf.Encryption(**settings))
    with pikepdf.open("report.pdf") as pdf:
        pdf.save("report-streams.pdf", object_stream_mode=pikepdf.ObjectStreamMode.generate, linearize=True)


if __name__ == "__main__":
    main()
