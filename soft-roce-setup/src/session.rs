//! How the host talks to a machine's agent: frames on a virtio-serial port, one session at a time.
//!
//! A port is a stream of bytes that neither side can reset: whoever is killed in the middle of a frame
//! leaves its beginning to the next. So frames are COBS-encoded (a zero byte ends each and occurs nowhere
//! else), carry a checksum, and name their session; what does not fit is dropped.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use xxhash_rust::xxh3::xxh3_64;

/// Most bytes of input or output in one frame.
pub const CHUNK: usize = 32 * 1024;

/// Most bytes of an encoded frame; what is longer without a zero byte is no frame of ours.
const LONGEST: usize = 2 * CHUNK;

/// From the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToGuest {
    /// Begins a session: the program and its arguments. Ends the session before, if it still runs.
    Start(Vec<String>),
    /// Input; the next may be sent once [`ToHost::InputTaken`] has come.
    Input(Vec<u8>),
    /// No more input.
    InputEnd,
}

/// From the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToHost {
    /// The program runs.
    Started,
    /// The program cannot be run: an errno of execve(2), and why.
    Refused(i32, String),
    /// The last [`ToGuest::Input`] was written to the program, or the program wants no more.
    InputTaken,
    /// Standard output.
    Out(Vec<u8>),
    /// Standard error.
    Err(Vec<u8>),
    /// The program has ended and all its output was sent: its status, 128 + n if signal n ended it.
    Ended(i32),
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    session: u64,
    sum: u64,
    body: Vec<u8>,
}

fn sum(session: u64, body: &[u8]) -> u64 {
    xxh3_64(body) ^ session.rotate_left(32)
}

/// Encodes one frame. The zero byte in front ends whatever a killed writer left before it.
///
/// # Errors
/// None but what `postcard` answers for what it cannot encode.
pub fn encode<T: Serialize>(session: u64, body: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(body).map_err(io::Error::other)?;
    let sealed = Sealed { session, sum: sum(session, &body), body };
    let mut frame = vec![0];
    frame.extend(postcard::to_stdvec_cobs(&sealed).map_err(io::Error::other)?);
    Ok(frame)
}

/// Writes one frame, in one piece.
///
/// # Errors
/// What writing answers.
pub fn send<T: Serialize>(mut to: impl Write, session: u64, body: &T) -> io::Result<()> {
    to.write_all(&encode(session, body)?)
}

/// Finds the frames in a stream.
pub struct Frames<R> {
    from: R,
    piece: Vec<u8>,
    buffer: Vec<u8>,
    taken: usize,
}

impl<R: Read> Frames<R> {
    /// Reads frames from `from`.
    pub fn new(from: R) -> Frames<R> {
        Frames { from, piece: Vec::new(), buffer: Vec::new(), taken: 0 }
    }

    /// The next whole frame and its session; `None` when the other side has gone. What is not a frame
    /// is passed over.
    ///
    /// # Errors
    /// What reading answers.
    pub fn frame<T: DeserializeOwned>(&mut self) -> io::Result<Option<(u64, T)>> {
        loop {
            while self.taken < self.buffer.len() {
                let rest = &self.buffer[self.taken..];
                let (part, ended) = match rest.iter().position(|b| *b == 0) {
                    Some(n) => (&rest[..n], true),
                    None => (rest, false),
                };
                self.taken += part.len() + usize::from(ended);
                if self.piece.len() <= LONGEST {
                    self.piece.extend_from_slice(part);
                }
                if ended {
                    let mut piece = std::mem::take(&mut self.piece);
                    if let Some(frame) = decode(&mut piece) {
                        return Ok(Some(frame));
                    }
                }
            }
            self.buffer.resize(CHUNK, 0);
            self.taken = 0;
            let n = match self.from.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => {
                    self.buffer.clear();
                    return Err(e);
                }
                Ok(0) => {
                    self.buffer.clear();
                    self.piece.clear();
                    return Ok(None);
                }
                Ok(n) => n,
            };
            self.buffer.truncate(n);
        }
    }
}

fn decode<T: DeserializeOwned>(piece: &mut [u8]) -> Option<(u64, T)> {
    if piece.is_empty() || piece.len() > LONGEST {
        return None;
    }
    let sealed: Sealed = postcard::from_bytes_cobs(piece).ok()?;
    if sealed.sum != sum(sealed.session, &sealed.body) {
        return None;
    }
    Some((sealed.session, postcard::from_bytes(&sealed.body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Vec<(u64, ToGuest)> {
        let mut frames = Frames::new(bytes);
        let mut found = Vec::new();
        while let Some(frame) = frames.frame().unwrap() {
            found.push(frame);
        }
        found
    }

    proptest! {
        #[test]
        fn frames_come_as_they_went(inputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..9)) {
            let mut stream = Vec::new();
            for (i, input) in inputs.iter().enumerate() {
                send(&mut stream, i as u64, &ToGuest::Input(input.clone())).unwrap();
            }
            let sent: Vec<_> =
                inputs.into_iter().enumerate().map(|(i, b)| (i as u64, ToGuest::Input(b))).collect();
            prop_assert_eq!(all(&stream), sent);
        }

        #[test]
        fn a_writer_killed_anywhere_costs_its_own_frame_only(cut in 0usize..200, bytes in prop::collection::vec(any::<u8>(), 200)) {
            let mut stream = Vec::new();
            send(&mut stream, 1, &ToGuest::Input(bytes)).unwrap();
            stream.truncate(cut);
            let start = ToGuest::Start(vec!["true".to_owned()]);
            send(&mut stream, 2, &start).unwrap();
            prop_assert_eq!(all(&stream), vec![(2, start)]);
        }

        #[test]
        fn noise_is_passed_over(noise in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut stream = noise;
            send(&mut stream, 3, &ToGuest::InputEnd).unwrap();
            prop_assert_eq!(all(&stream).pop(), Some((3, ToGuest::InputEnd)));
        }
    }

    #[test]
    fn the_largest_chunk_fits() {
        for byte in [0, 1, 255] {
            let frame = encode(9, &ToHost::Out(vec![byte; CHUNK])).unwrap();
            assert!(frame.len() < LONGEST);
            let got: Option<(u64, ToHost)> = Frames::new(frame.as_slice()).frame().unwrap();
            assert_eq!(got, Some((9, ToHost::Out(vec![byte; CHUNK]))));
        }
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut frames = Frames::new(io::repeat(7).take(50 * CHUNK as u64));
        assert!(frames.frame::<ToHost>().unwrap().is_none());
        assert!(frames.piece.len() <= LONGEST + CHUNK);
    }
}
