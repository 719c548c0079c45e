//! Frames of HTTP/2, for clients that break its rules (RFC 9113).

/// What a connection begins with; a SETTINGS frame follows.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame without flags.
pub fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, 0]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An empty SETTINGS frame.
pub fn settings() -> Vec<u8> {
    frame(4, 0, &[])
}

/// Frames that cost their sender nothing: PRIORITY, WINDOW_UPDATE, PING and SETTINGS.
pub fn floods() -> [Vec<u8>; 4] {
    [frame(2, 1, &[0, 0, 0, 0, 16]), frame(8, 0, &[0, 0, 0, 1]), frame(6, 0, &[7; 8]), settings()]
}
