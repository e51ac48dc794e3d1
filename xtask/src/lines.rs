//! Reads the output of a running program line by line.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::mpsc::{Receiver, channel},
};

/// The lines of `output` as they come, until its end.
pub(crate) fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // Not `lines()`: the output may not be UTF-8.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
