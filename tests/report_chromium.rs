//! The page in a real browser: on a phone, in the light and in the dark, on paper.

#[path = "report/fixture.rs"]
mod fixture;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rigscale::record::Analysis;
use rigscale::report::{Beside, Machine, render, render_with};
use rigscale::topology::from_yaml;

/// A page without a request is drawn in a second; a browser that takes this long is stuck.
const BROWSER_MAX: Duration = Duration::from_secs(90);

/// Runs Chromium on a page with a fresh profile and without network services; returns what it printed.
fn chromium(folder: &Path, arguments: &[String]) -> String {
    let profile = tempfile::tempdir().expect("a profile");
    let mut browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chromium is installed");
    let mut stdout = browser.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).map(|_| printed)
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = browser.try_wait().expect("a child") {
            break status;
        }
        if BROWSER_MAX < begun.elapsed() {
            browser.kill().expect("a child");
            panic!("chromium did not end within {BROWSER_MAX:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "chromium ended with {status}");
    reader.join().expect("a reader").expect("UTF-8")
}

fn page(runs: &[&Analysis]) -> String {
    let report = render(runs).expect("a report");
    let html = report.files.into_iter().find(|(path, _)| path == "report.html").expect("a page").1;
    String::from_utf8(html).expect("UTF-8")
}

fn address(folder: &Path, html: &str) -> String {
    let path = folder.join("report.html");
    std::fs::write(&path, html).expect("a page");
    format!("file://{}", path.display())
}

/// Widths in pixels of a page in a window as wide as a phone.
#[derive(Debug)]
struct Widths {
    content: u32,
    window: u32,
    charts: u32,
}

/// Shows a copy of the page in a frame of 360 pixels (windows cannot be that narrow) with a script that reports what it
/// measures.
fn measured(html: &str) -> Widths {
    let policy = html.lines().find(|line| line.contains("Content-Security-Policy")).expect("a policy");
    let script = "<script>parent.document.body.dataset.widths = [Math.max(document.documentElement.scrollWidth, \
                  document.body.scrollWidth), innerWidth, document.querySelectorAll('.narrow svg').length].join(' ');\
                  </script></body>";
    let page = html.replace(policy, "").replace("</body>", script).replace('&', "&amp;").replace('"', "&quot;");
    let frame =
        format!("<!DOCTYPE html><body><iframe style=\"width:360px;border:0\" srcdoc=\"{page}\"></iframe></body>");
    let folder = tempfile::tempdir().expect("a folder");
    let dom = chromium(folder.path(), &["--dump-dom".into(), address(folder.path(), &frame)]);
    let widths = dom.split_once("data-widths=\"").and_then(|(_, rest)| rest.split_once('"')).expect("widths").0;
    let widths: Vec<u32> = widths.split(' ').map(|width| width.parse().expect("a number")).collect();
    Widths { content: widths[0], window: widths[1], charts: widths[2] }
}

#[test]
#[ignore = "needs chromium"]
fn nothing_is_wider_than_a_phone() {
    let (rich, failing, hostile, bare, empty) =
        (fixture::rich(), fixture::failing(), fixture::hostile(), fixture::bare(), fixture::empty());
    let pages: [(&[&Analysis], u32); 5] =
        [(&[&rich], 5), (&[&failing, &rich, &hostile], 5), (&[&hostile, &failing], 5), (&[&bare], 4), (&[&empty], 0)];
    for (runs, charts) in pages {
        let widths = measured(&page(runs));
        assert_eq!(widths.window, 360);
        assert!(widths.content <= 360, "{widths:?}: the page scrolls sideways");
        assert_eq!(widths.charts, charts);
    }
    let wide = page(&[&empty]).replace("<footer>", "<footer style=\"width:600px\">");
    assert!(600 <= measured(&wide).content, "a page that is too wide is seen to be");
}

#[test]
#[ignore = "needs chromium"]
fn the_picture_of_a_machine_fits_a_phone() {
    for name in ["server-8gpu", "narrow-link", "desktop-2gpu-x8"] {
        let path = format!("{}/tests/machines/{name}/topology.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).expect("a topology");
        let machine = from_yaml(&text, name).expect("a topology");
        let beside = Beside { machine: Some(Machine::Probed(&machine)), links: None };
        let report = render_with(&[&fixture::empty()], beside).expect("a report");
        let html = report.files.into_iter().find(|(path, _)| path == "report.html").expect("a page").1;
        let widths = measured(&String::from_utf8(html).expect("UTF-8"));
        assert!(widths.content <= 360 && widths.charts == 1, "{name}: {widths:?}");
    }
}

/// The colours of a screenshot: red, green, blue of each pixel.
fn shot(folder: &Path, url: &str, scheme: u8) -> Vec<[u8; 3]> {
    let path = folder.join("shot.png");
    chromium(
        folder,
        &[
            format!("--blink-settings=preferredColorScheme={scheme}"),
            "--window-size=1000,4000".into(),
            format!("--screenshot={}", path.display()),
            url.into(),
        ],
    );
    let file = std::io::BufReader::new(std::fs::File::open(&path).expect("a screenshot"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut pixels).expect("a whole PNG");
    pixels.truncate(info.buffer_size());
    let each = info.color_type.samples();
    pixels.chunks_exact(each).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
}

#[test]
#[ignore = "needs chromium"]
fn the_page_is_light_or_dark_as_its_reader_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = address(folder.path(), &page(&[&fixture::rich()]));
    // Paper, then the blue of the charts.
    let schemes = [(1, [0xff, 0xff, 0xff], [0x00, 0x72, 0xb2]), (0, [0x14, 0x18, 0x1d], [0x3f, 0xa0, 0xe0])];
    for (scheme, paper, blue) in schemes {
        let pixels = shot(folder.path(), &url, scheme);
        let count = |colour: [u8; 3]| pixels.iter().filter(|pixel| **pixel == colour).count();
        assert!(pixels.len() / 2 < count(paper), "scheme {scheme}: the page is {paper:?}");
        assert!(2_000 < count(blue), "scheme {scheme}: charts are in {blue:?}");
        let other = schemes.iter().find(|other| other.0 != scheme).expect("two schemes");
        assert_eq!(count(other.2), 0, "scheme {scheme}: no chart is in the other's colours");
    }
}

/// Pages of the PDF that a browser prints.
fn printed_pages(html: &str) -> usize {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.pdf");
    let url = address(folder.path(), html);
    chromium(folder.path(), &["--no-pdf-header-footer".into(), format!("--print-to-pdf={}", path.display()), url]);
    let pdf = std::fs::read(&path).expect("a PDF");
    pdf.windows(12).filter(|bytes| bytes == b"/Type /Page\n").count()
}

#[test]
#[ignore = "needs chromium"]
fn the_acceptance_sheet_is_one_printed_page() {
    for run in [fixture::rich(), fixture::failing(), fixture::bare(), fixture::empty()] {
        let html = page(&[&run]);
        let (sheet, _) = html.split_once("</section>").expect("a sheet");
        assert_eq!(printed_pages(&format!("{sheet}</section></main></body></html>")), 1, "{}", run.verdict.headline);
        assert!(2 <= printed_pages(&html), "the appendix follows it");
    }
}
