//! What the first bytes of a segment say of the protocol that it is in. Made while a packet is
//! received, so it looks at few bytes and keeps none.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a watched connection has received since its watch began.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Heard {
    /// How the first segment with data begins, a [`Beginning`]; 0: there was none.
    pub first: u32,
}

impl Heard {
    /// How the first segment with data begins; `None`: there was none.
    pub fn first(&self) -> Option<Beginning> {
        let all = [Beginning::Http1, Beginning::Http2, Beginning::Tls];
        let known = all.into_iter().find(|all| *all as u32 == self.first);
        (self.first != 0).then_some(known.unwrap_or(Beginning::Other))
    }
}

/// Bytes that are looked at.
pub const HEAD: usize = 16;

/// How a segment begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Beginning {
    /// A method and what a target begins with. Not CONNECT: what follows that is a tunnel.
    Http1 = 1,
    /// The header of a frame as RFC 9113 has it, or `PRI * HTTP/2.0`.
    Http2 = 2,
    /// The header of a record as RFC 8446 has it.
    Tls = 3,
    /// None of those: another protocol, or the middle of something.
    Other = 4,
}

/// How a segment begins whose first bytes are these; zeros stand for what it does not have.
/// In the middle of something it means little: of ten thousand random ones one looks like a frame.
#[inline(always)]
pub fn beginning(head: &[u8; HEAD]) -> Beginning {
    if is_http2(head) {
        Beginning::Http2
    } else if is_tls(head) {
        Beginning::Tls
    } else if is_http1(head) {
        Beginning::Http1
    } else {
        Beginning::Other
    }
}

/// Methods in use: other protocols have words in capitals as well, and FTP has paths after them.
macro_rules! requests {
    ($head:ident: $($method:literal)*) => {
        $(starts($head, $method) && is_target($head, $method.len()))||*
    };
}

#[inline(always)]
fn is_http1(head: &[u8; HEAD]) -> bool {
    requests! { head:
        b"GET " b"POST " b"PUT " b"HEAD " b"DELETE " b"PATCH " b"OPTIONS " b"TRACE "
        b"QUERY " b"PURGE " b"SEARCH " b"REPORT " b"PROPFIND " b"PROPPATCH " b"MKCOL "
        b"MKCALENDAR " b"COPY " b"MOVE " b"LOCK " b"UNLOCK " b"M-SEARCH "
    }
}

#[inline(always)]
fn starts<const N: usize>(head: &[u8; HEAD], word: &[u8; N]) -> bool {
    let mut at = 0;
    while at < N {
        if head[at] != word[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// `/`, `* H` or `http`, as far as it is seen.
#[inline(always)]
fn is_target(head: &[u8; HEAD], at: usize) -> bool {
    let is = |offset: usize, byte: u8| at + offset >= HEAD || head[at + offset] == byte;
    is(0, b'/')
        || is(0, b'*') && is(1, b' ') && is(2, b'H')
        || is(0, b'h') && is(1, b't') && is(2, b't') && is(3, b'p')
}

#[inline(always)]
fn is_http2(head: &[u8; HEAD]) -> bool {
    if [head[0], head[1], head[2], head[3]] == *b"PRI " {
        return head[4] == b'*';
    }
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let (kind, flags) = (head[3], head[4]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    // A client's streams are odd; the highest bit is reserved.
    let of_stream = stream & 1 == 1 && stream >> 31 == 0;
    let of_connection = stream == 0;
    let only = |allowed: u8| flags & !allowed == 0;
    match kind {
        // DATA. An empty one that ends nothing has no use, and is what zeros look like.
        0 => of_stream && only(0x09) && (length > 0 || flags & 1 == 1),
        // HEADERS
        1 => of_stream && only(0x2d) && length > 0,
        // PRIORITY
        2 => of_stream && length == 5 && flags == 0,
        // RST_STREAM
        3 => of_stream && length == 4 && flags == 0,
        // SETTINGS
        4 => of_connection && only(0x01) && length.is_multiple_of(6) && length < 6 * 64,
        // PING
        6 => of_connection && only(0x01) && length == 8,
        // GOAWAY
        7 => of_connection && flags == 0 && (8..1 << 14).contains(&length),
        // WINDOW_UPDATE
        8 => (of_connection || of_stream) && flags == 0 && length == 4,
        _ => false,
    }
}

#[inline(always)]
fn is_tls(head: &[u8; HEAD]) -> bool {
    let length = u16::from_be_bytes([head[3], head[4]]);
    let is_length = length > 0 && length <= (1 << 14) + 2048;
    matches!(head[0], 20..=23) && head[1] == 3 && head[2] <= 4 && is_length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Beginning {
        let mut head = [0; HEAD];
        let seen = bytes.len().min(HEAD);
        head[..seen].copy_from_slice(&bytes[..seen]);
        beginning(&head)
    }

    #[test]
    fn requests_of_http_1_begin_with_a_method_and_a_target() {
        for request in [
            "GET / HTTP/1.1\r\n",
            "POST /a HTTP/1.1",
            "OPTIONS * HTTP/1",
            "GET http://a/ HTTP/1.0",
            "MKCALENDAR /a HTTP/1.1",
            "M-SEARCH * HTTP/1.1",
            "PROPFIND http://a/ HTTP/1.1",
        ] {
            assert_eq!(of(request.as_bytes()), Beginning::Http1, "{request}");
        }
        for other in [
            "CONNECT a:443 HTTP/1.1",
            "get / HTTP/1.1",
            "GET\r\n",
            "GET  / HTTP/1.1",
            "HTTP/1.1 200 OK\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "PING\r\n",
            "AB /",
            "PUB a 5\r\nhello\r\n",
            "SUB a 1\r\n",
            "INVITE sip:a@b SIP/2.0\r\n",
            "PLAY rtsp://a/ RTSP/1.0\r\n",
            "MAIL FROM:<a@b>\r\n",
            "USER bob\r\nPASS x\r\n",
            "CWD /pub\r\n",
            "RETR /pub/file\r\n",
            "OPTIONS * RTSP/1.0\r\n",
            "SET foo bar\r\n",
            "ERROR foo\r\n    ",
            "",
            "ABCDEFGHIJKLMNOPQ /",
        ] {
            assert_eq!(of(other.as_bytes()), Beginning::Other, "{other}");
        }
    }

    /// As hyper, nginx and grpc send them.
    #[test]
    fn frames_of_http_2_have_a_header_of_their_own() {
        let frames: [&[u8]; 12] = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &[0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100],
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[0, 0, 39, 1, 5, 0, 0, 0, 1, 0x82, 0x86],
            &[0, 0, 39, 1, 4, 0, 0, 0x10, 0x0f, 0x83, 0x86],
            &[0, 1, 0, 1, 0x24, 0, 0, 0, 3, 0x80],
            &[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 1, 0, 0, 0, 3],
            &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0xff, 0, 1],
            &[0, 0, 4, 3, 0, 0, 0, 0, 5, 0, 0, 0, 8],
            &[0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        ];
        for frame in frames {
            assert_eq!(of(frame), Beginning::Http2, "{frame:?}");
        }
        let others: [&[u8]; 9] = [
            &[0; 16],
            // A server's stream, a reserved bit, flags that there are not.
            &[0, 0, 39, 1, 5, 0, 0, 0, 2, 0x82],
            &[0, 0, 39, 1, 5, 0x80, 0, 0, 1, 0x82],
            &[0, 0, 39, 1, 0xff, 0, 0, 0, 1, 0x82],
            // Settings of a length that they cannot have, or of a stream.
            &[0, 0, 17, 4, 0, 0, 0, 0, 0],
            &[0, 0, 18, 4, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 8, 9, 0, 0, 0, 0, 1],
            // PostgreSQL's first words, and its query.
            &[0, 0, 0, 41, 0, 3, 0, 0, b'u', b's', b'e', b'r'],
        ];
        for other in others {
            assert_eq!(of(other), Beginning::Other, "{other:?}");
        }
    }

    #[test]
    fn what_was_first_is_told() {
        assert_eq!(Heard::default().first(), None);
        for beginning in [
            Beginning::Http1,
            Beginning::Http2,
            Beginning::Tls,
            Beginning::Other,
        ] {
            let first = beginning as u32;
            assert_eq!(Heard { first }.first(), Some(beginning));
        }
    }

    #[test]
    fn records_of_tls_have_a_header_of_their_own() {
        for record in [
            [22, 3, 1, 2, 0, 1],
            [23, 3, 3, 0, 40, 7],
            [21, 3, 3, 0, 2, 1],
        ] {
            assert_eq!(of(&record), Beginning::Tls, "{record:?}");
        }
        for other in [
            [23, 3, 3, 0, 0, 7],
            [23, 2, 3, 0, 40, 7],
            [24, 3, 3, 0, 40, 7],
        ] {
            assert_eq!(of(&other), Beginning::Other, "{other:?}");
        }
    }
}
