//! Draws a scene: one function for every backend, then what each format needs around it.

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, ShapeStyle, TextStyle};

use super::scene::{Align, At, FAMILY, Face, Ink, LINE_PER_EM, Mark, Scene};

/// Backends take whole numbers, so scenes are drawn this much larger: coordinates keep quarters of a pixel.
const SCALE: f64 = 4.0;

/// PNGs have this many pixels to one of the scene.
const PNG_SCALE: usize = 2;

/// Why a chart could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PaintError {
    /// The embedded font is not one.
    #[error("the embedded font could not be read")]
    Font,
    /// The backend refused a mark.
    #[error("a mark could not be drawn: {0}")]
    Mark(String),
    /// The bitmap could not be written as PNG.
    #[error("the bitmap could not be encoded")]
    Encode(#[from] png::EncodingError),
}

/// How a backend places text. Both are given baselines; neither takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lettering {
    /// SVG: the backend divides sizes by 1.24 and shifts by `dy`, which is taken out afterwards.
    Markup,
    /// Bitmaps: the size is a line height, and the baseline is half of it below the top.
    Pixels,
}

/// SVG's size is this times the em that is written.
const MARKUP_SIZE_PER_EM: f64 = 1.24;

/// A pixel of the backend. Marks far outside are pulled to the edge: backends do arithmetic in `i32`.
fn pixel(at: At) -> (i32, i32) {
    const FAR: f64 = 100_000.0;
    let whole = |value: f64| (value * SCALE).round().clamp(-FAR, FAR) as i32;
    (whole(at.0), whole(at.1))
}

fn draw_text<DB: DrawingBackend>(
    backend: &mut DB,
    lettering: Lettering,
    (at, align, face, ink, text): (At, Align, Face, Ink, &str),
) -> Result<(), PaintError> {
    let (x, y) = pixel(at);
    let (size, y) = match lettering {
        Lettering::Markup => (face.em * SCALE * MARKUP_SIZE_PER_EM, y),
        Lettering::Pixels => {
            let size = (face.em * SCALE * LINE_PER_EM).round();
            (size, y - (size / 2.0) as i32)
        }
    };
    let h_pos = match align {
        Align::Start => HPos::Left,
        Align::Middle => HPos::Center,
        Align::End => HPos::Right,
    };
    let style = TextStyle {
        font: (FAMILY, size, face.style()).into_font(),
        color: ink.light().to_backend_color(),
        pos: Pos::new(h_pos, VPos::Top),
    };
    backend.draw_text(text, &style, (x, y)).map_err(|error| PaintError::Mark(error.to_string()))
}

/// Draws every mark of the scene, in order.
fn paint<DB: DrawingBackend>(scene: &Scene, backend: &mut DB, lettering: Lettering) -> Result<(), PaintError> {
    for mark in &scene.marks {
        let drawn = match mark {
            Mark::Rect { from, to, ink } => {
                let ((left, top), (right, bottom)) = (pixel(*from), pixel(*to));
                // A bitmap fills both edges; SVG only spans them.
                let last = i32::from(lettering == Lettering::Pixels);
                backend.draw_rect((left, top), (right - last, bottom - last), &ink.light(), true)
            }
            Mark::Line { from, to, width, ink } => {
                let style: ShapeStyle = ink.light().stroke_width((width * SCALE).round() as u32);
                backend.draw_line(pixel(*from), pixel(*to), &style)
            }
            Mark::Dot { at, radius, ink } => {
                backend.draw_circle(pixel(*at), (radius * SCALE).round() as u32, &ink.light(), true)
            }
            Mark::Area { outline, ink } => backend.fill_polygon(outline.iter().map(|at| pixel(*at)), &ink.light()),
            Mark::Text { at, align, face, ink, text } => {
                draw_text(backend, lettering, (*at, *align, *face, *ink, text))?;
                continue;
            }
        };
        drawn.map_err(|error| PaintError::Mark(error.to_string()))?;
    }
    backend.present().map_err(|error| PaintError::Mark(error.to_string()))
}

fn drawn_size(scene: &Scene) -> (u32, u32) {
    ((scene.width * SCALE) as u32, (scene.height * SCALE) as u32)
}

/// The marks of a scene as SVG elements, without the element around them.
fn elements(scene: &Scene) -> Result<String, PaintError> {
    let mut text = String::new();
    paint(scene, &mut SVGBackend::with_string(&mut text, drawn_size(scene)), Lettering::Markup)?;
    let inner = text.split_once(">\n").and_then(|(_, rest)| rest.rsplit_once("</svg>")).map_or("", |(inner, _)| inner);
    // The backend escapes quotes in texts, so none of these can be the words of a label.
    let family = format!(" font-family=\"{FAMILY}\"");
    Ok([" dy=\"0.76em\"", " opacity=\"1\"", " stroke=\"none\"", &family]
        .iter()
        .fold(inner.to_owned(), |text, part| text.replace(part, ""))
        .replace("\n</text>", "</text>"))
}

/// The fonts that readers have, in words of CSS that also fit an attribute.
const FONT_STACK: &str = "Roboto, Inter, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif";

/// An `svg` element for a page: no size of its own, no background, a title for those who listen.
pub(super) fn inline_svg(scene: &Scene, id: &str) -> Result<String, PaintError> {
    let (width, height) = drawn_size(scene);
    Ok(format!(
        "<svg class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}\" \
         font-family=\"{FONT_STACK}\">\n<title id=\"{id}\">{}</title>\n{}</svg>\n",
        escape(&scene.title),
        elements(scene)?
    ))
}

/// A file of its own: white, or dark where the reader's system is.
pub(super) fn svg_file(scene: &Scene) -> Result<String, PaintError> {
    let (width, height) = drawn_size(scene);
    let paper = Ink::Paper.light();
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" font-family=\"{FONT_STACK}\">\n<title>{}</title>\n\
         <style>@media screen and (prefers-color-scheme: dark){{{}}}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#{:02X}{:02X}{:02X}\"/>\n{}</svg>\n",
        scene.width,
        scene.height,
        escape(&scene.title),
        Ink::dark_rules(""),
        paper.0,
        paper.1,
        paper.2,
        elements(scene)?
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A PNG on white, two pixels to one of the scene. It is drawn at twice that and averaged, so that edges and letters
/// are smooth.
pub(super) fn png(scene: &Scene) -> Result<Vec<u8>, PaintError> {
    let (width, height) = drawn_size(scene);
    let mut large = vec![255u8; width as usize * height as usize * 3];
    paint(scene, &mut BitMapBackend::with_buffer(&mut large, (width, height)), Lettering::Pixels)?;
    let (rows, columns, small) = averaged(&large, width as usize, height as usize, SCALE as usize / PNG_SCALE);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, columns as u32, rows as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Default);
    encoder.write_header()?.write_image_data(&small)?;
    Ok(bytes)
}

/// Rows, columns and RGB bytes of a picture in which each pixel is the mean of `block` × `block` of the larger one.
fn averaged(large: &[u8], width: usize, height: usize, block: usize) -> (usize, usize, Vec<u8>) {
    let (rows, columns) = (height / block, width / block);
    let mut small = Vec::with_capacity(rows * columns * 3);
    for band in large.chunks_exact(width * 3 * block) {
        let mut sums = vec![0u32; columns * 3];
        for line in band.chunks_exact(width * 3) {
            for (sum, pixels) in sums.chunks_exact_mut(3).zip(line.chunks_exact(3 * block)) {
                for pixel in pixels.chunks_exact(3) {
                    sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(*value));
                }
            }
        }
        small.extend(sums.iter().map(|sum| (sum / (block * block) as u32) as u8));
    }
    (rows, columns, small)
}

#[cfg(test)]
mod tests {
    use super::averaged;

    #[test]
    fn a_pixel_is_the_mean_of_its_block() {
        let large = [0, 10, 20, 4, 10, 20, 8, 10, 20, 4, 30, 20];
        assert_eq!(averaged(&large, 2, 2, 2), (1, 1, vec![4, 15, 20]));
    }
}
