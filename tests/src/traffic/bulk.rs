//! Many bytes by TCP, in either direction, each checked at its place.
//!
//! A request is one byte for the direction and the number of bytes (64 bits, big-endian). *Up*: the client sends them, the
//! server answers 8 bytes: the offset of the first wrong byte, or the number itself if all were right. *Down*: the server
//! sends them. The bytes are a pseudo-random function of their offset, so that a lost, doubled or swapped piece shows.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Deadline, Failure, Server};
use crate::lab::Host;

/// Bytes written or read at once: more than one segment of the largest kind.
const CHUNK: usize = 128 * 1024;
const UP: u8 = b'U';
const DOWN: u8 = b'D';

/// Starts a server on `port` (0: any free one) of every address of `host`.
pub fn serve(host: &Host, port: u16) -> Result<Server> {
    Server::tcp(host, port, answer)
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let direction = stream.read_u8().await?;
    let total = stream.read_u64().await?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < total {
        let length = chunk_at(offset, total);
        if direction == UP {
            let length = stream.read(&mut chunk[..length]).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(wrong) = first_wrong(offset, &chunk[..length]) {
                return stream.write_u64(wrong).await;
            }
            offset += length as u64;
        } else {
            fill(offset, &mut chunk[..length]);
            stream.write_all(&chunk[..length]).await?;
            offset += length as u64;
        }
    }
    if direction == UP { stream.write_u64(total).await } else { stream.shutdown().await }
}

/// Sends `total` bytes and has the server check them.
pub fn upload(to: SocketAddr, total: u64, timeout: Duration) -> Result<(), Failure> {
    let deadline = Deadline::after(timeout);
    let mut stream = deadline.connect(to)?;
    stream.write_all(&request(UP, total))?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < total {
        let length = chunk_at(offset, total);
        fill(offset, &mut chunk[..length]);
        deadline.limit(&stream)?;
        stream.write_all(&chunk[..length])?;
        offset += length as u64;
    }
    let mut right = [0; 8];
    deadline.limit(&stream)?;
    stream.read_exact(&mut right)?;
    match u64::from_be_bytes(right) {
        right if right == total => Ok(()),
        wrong => Err(wrong_at(wrong)),
    }
}

/// Has the server send `total` bytes and checks them, and that no more come.
pub fn download(to: SocketAddr, total: u64, timeout: Duration) -> Result<(), Failure> {
    let deadline = Deadline::after(timeout);
    let mut stream = deadline.connect(to)?;
    stream.write_all(&request(DOWN, total))?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        deadline.limit(&stream)?;
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return if offset == total { Ok(()) } else { Err(Failure::Closed) };
        }
        if let Some(wrong) = first_wrong(offset, &chunk[..length]) {
            return Err(wrong_at(wrong));
        }
        offset += length as u64;
        if offset > total {
            return Err(wrong_at(total));
        }
    }
}

fn request(direction: u8, total: u64) -> Vec<u8> {
    [&[direction][..], &total.to_be_bytes()].concat()
}

fn wrong_at(offset: u64) -> Failure {
    Failure::Wrong(format!("byte {offset}"))
}

fn chunk_at(offset: u64, total: u64) -> usize {
    (total - offset).min(CHUNK as u64) as usize
}

/// Writes the bytes that belong at `offset`.
pub(super) fn fill(offset: u64, bytes: &mut [u8]) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = mix(at / 8).to_le_bytes();
        let part = &word[(at % 8) as usize..];
        let length = part.len().min(rest.len());
        let (now, later) = rest.split_at_mut(length);
        now.copy_from_slice(&part[..length]);
        at += length as u64;
        rest = later;
    }
}

/// The offset of the first byte that is not what belongs there.
pub(super) fn first_wrong(offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut right = vec![0; bytes.len()];
    fill(offset, &mut right);
    // Comparing whole slices first is what makes the usual case fast.
    let differ = right != bytes;
    differ.then(|| {
        right.iter().zip(bytes).take_while(|(right, byte)| right == byte).count() as u64 + offset
    })
}

/// A bijective mixer of 64 bits (multiply and xor-shift, twice).
fn mix(word: u64) -> u64 {
    let word = (word ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let word = (word ^ word >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ word >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_make_the_same_stream() {
        let mut whole = vec![0; 1000];
        fill(5, &mut whole);
        let mut pieces = Vec::new();
        for size in [1, 7, 8, 9, 300, 675] {
            let mut piece = vec![0; size];
            fill(5 + pieces.len() as u64, &mut piece);
            pieces.extend(piece);
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    fn a_changed_swapped_or_shifted_byte_is_found() {
        let mut bytes = vec![0; 4096];
        fill(64, &mut bytes);
        assert_eq!(first_wrong(64, &bytes), None);
        assert!(first_wrong(65, &bytes).is_some());
        assert!(first_wrong(64 + 1448, &bytes).is_some());
        bytes[1000] ^= 1;
        assert_eq!(first_wrong(64, &bytes), Some(1064));
    }
}
