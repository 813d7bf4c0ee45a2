//! PDF files from objects.

use std::fmt::Write;

/// Objects numbered from 1; the first is the catalogue.
pub(crate) fn file(objects: &[Vec<u8>]) -> Vec<u8> {
    file_with(objects, "")
}

/// The same with more in the trailer.
pub(crate) fn file_with(objects: &[Vec<u8>], trailer: &str) -> Vec<u8> {
    let mut file = b"%PDF-1.7\n".to_vec();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (index, object) in objects.iter().enumerate() {
        writeln!(table, "{:010} 00000 n ", file.len()).expect("a string takes all");
        file.extend(format!("{} 0 obj\n", index + 1).bytes());
        file.extend(object);
        file.extend(b"\nendobj\n");
    }
    let start = file.len();
    file.extend(table.bytes());
    let end = format!("trailer\n<< /Size {} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    file.extend(end.bytes());
    file
}

pub(crate) fn object(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

pub(crate) fn stream(dictionary: &str, bytes: &[u8]) -> Vec<u8> {
    let head = format!("<< {dictionary} /Length {} >>\nstream\n", bytes.len());
    [head.as_bytes(), bytes, b"\nendstream"].concat()
}

/// What a page draws, and what it draws with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    /// More entries of the page's dictionary.
    pub(crate) more: String,
    /// Its content stream.
    pub(crate) content: String,
    /// `/NAME` and stream of its XObjects.
    pub(crate) objects: Vec<(String, Vec<u8>)>,
}

/// A document of A4 pages (595 × 842 points) with Helvetica as `/F`.
pub(crate) fn document(pages: &[Page]) -> Vec<u8> {
    let mut objects = vec![object("<< /Type /Catalog /Pages 2 0 R >>"), Vec::new()];
    objects.push(object("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"));
    let mut kids = String::new();
    for page in pages {
        let mut named = String::new();
        for (name, stream) in &page.objects {
            objects.push(stream.clone());
            write!(named, "/{name} {} 0 R ", objects.len()).expect("a string takes all");
        }
        objects.push(stream("", page.content.as_bytes()));
        let content = objects.len();
        objects.push(object(&format!(
            "<< /Type /Page /Parent 2 0 R /Contents {content} 0 R /Resources << /Font << /F 3 0 R >> /XObject << {named}>> >> {} >>",
            page.more
        )));
        write!(kids, "{} 0 R ", objects.len()).expect("a string takes all");
    }
    objects[1] = object(&format!("<< /Type /Pages /Kids [{kids}] /Count {} /MediaBox [0 0 595 842] >>", pages.len()));
    file(&objects)
}

/// Lines of text in Helvetica of 12 points, from 72 points at the left and 770 above the page's lower edge, 16 apart.
pub(crate) fn text(lines: &[&str]) -> String {
    let mut content = String::from("BT /F 12 Tf 16 TL 72 770 Td\n");
    for line in lines {
        writeln!(content, "({}) Tj T*", line.replace('(', "\\(").replace(')', "\\)")).expect("a string takes all");
    }
    content + "ET\n"
}

/// A page that is one JPEG, with more content after it.
pub(crate) fn scan(jpeg: &[u8], width: u32, height: u32, more: &str) -> Page {
    let dictionary = format!(
        "/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /DCTDecode"
    );
    Page {
        content: format!("q 595 0 0 842 0 0 cm /Scan Do Q\n{more}"),
        objects: vec![("Scan".into(), stream(&dictionary, jpeg))],
        ..Page::default()
    }
}
