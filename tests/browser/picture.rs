//! Pictures of pages, with so few colours that they are small: text and areas need no more.

use std::io::Write;

use flate2::{Compression, Crc, write::ZlibEncoder};
use serde::Deserialize;
use serde_json::Value;

use crate::chromium::Chromium;

/// Reads a PNG in base64, and says of each pixel which of the 256 commonest colours is next to its own.
const READ: &str = "const [png, done] = arguments;
    (async () => {
      const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
      const { width, height } = image, canvas = new OffscreenCanvas(width, height).getContext('2d');
      canvas.drawImage(image, 0, 0);
      const { data } = canvas.getImageData(0, 0, width, height), counts = new Map(), all = [];
      for (let n = 0; n < data.length; n += 4) all.push(data[n] << 16 | data[n + 1] << 8 | data[n + 2]);
      for (const color of all) counts.set(color, (counts.get(color) ?? 0) + 1);
      const colors = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a - b), kept = colors.slice(0, 256);
      const parts = (color) => [color >> 16, color >> 8 & 255, color & 255];
      const far = (a, b) => parts(a).reduce((sum, part, n) => sum + (part - parts(b)[n]) ** 2, 0);
      const next = new Map(colors.map((color) => [color, kept.reduce((best, one, n) =>
        far(one, color) < far(kept[best], color) ? n : best, 0)]));
      const pixels = Array.from(all, (color) => next.get(color).toString(16).padStart(2, '0')).join('');
      return { width, height, colors: kept.map(parts), pixels };
    })().then(done);";

#[derive(Deserialize)]
struct Picture {
    width: u32,
    height: u32,
    /// Red, green and blue.
    colors: Vec<[u8; 3]>,
    /// Two hexadecimal digits each.
    pixels: String,
}

/// A PNG of what the window shows. Leaves its page.
pub fn take(browser: &Chromium) -> Vec<u8> {
    let shot = browser.tell("Page.captureScreenshot", Value::Null)["data"].clone();
    browser.open_address("data:text/html,<title>a picture</title>");
    let picture: Picture = serde_json::from_value(browser.wait_for(READ, &shot)).unwrap();
    let digits = picture.pixels.as_bytes().chunks(2);
    let pixels: Vec<u8> =
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect();
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in pixels.chunks(picture.width as usize) {
        rows.write_all(&[0]).unwrap(); // as it is
        rows.write_all(row).unwrap();
    }
    let mut header = [picture.width.to_be_bytes(), picture.height.to_be_bytes()].concat();
    header.extend([8, 3, 0, 0, 0]); // a byte a pixel, which is a place in the palette
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, body) in [
        (b"IHDR", header),
        (b"PLTE", picture.colors.concat()),
        (b"IDAT", rows.finish().unwrap()),
        (b"IEND", Vec::new()),
    ] {
        let mut sum = Crc::new();
        sum.update(name);
        sum.update(&body);
        png.extend((body.len() as u32).to_be_bytes());
        png.extend(name);
        png.extend(body);
        png.extend(sum.sum().to_be_bytes());
    }
    png
}
