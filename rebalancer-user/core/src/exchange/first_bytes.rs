//! The protocol of a connection whose client does not begin with a request of HTTP/1.

/// The number of bytes that are examined.
const HEAD: usize = 16;

/// The protocol that first bytes indicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstBytes {
    /// The header of a frame as RFC 9113 has it, or `PRI * HTTP/2.0`.
    Http2,
    /// The header of a record as RFC 8446 has it.
    Tls,
    /// None of those: another protocol, or the middle of a message.
    Other,
}

/// Examines the first bytes. In the middle of a message they mean little: one in ten thousand random
/// ones looks like a frame.
pub(super) fn first_bytes(bytes: &[u8]) -> FirstBytes {
    let mut head = [0; HEAD];
    for (to, from) in head.iter_mut().zip(bytes) {
        *to = *from;
    }
    if is_http2(&head) {
        FirstBytes::Http2
    } else if is_tls(&head) {
        FirstBytes::Tls
    } else {
        FirstBytes::Other
    }
}

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

fn is_tls(head: &[u8; HEAD]) -> bool {
    let length = u16::from_be_bytes([head[3], head[4]]);
    let is_length = length > 0 && length <= (1 << 14) + 2048;
    matches!(head[0], 20..=23) && head[1] == 3 && head[2] <= 4 && is_length
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(first_bytes(frame), FirstBytes::Http2, "{frame:?}");
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
            // PostgreSQL's startup message, and a query.
            &[0, 0, 0, 41, 0, 3, 0, 0, b'u', b's', b'e', b'r'],
        ];
        for other in others {
            assert_eq!(first_bytes(other), FirstBytes::Other, "{other:?}");
        }
    }

    #[test]
    fn records_of_tls_have_a_header_of_their_own() {
        for record in [
            [22, 3, 1, 2, 0, 1],
            [23, 3, 3, 0, 40, 7],
            [21, 3, 3, 0, 2, 1],
        ] {
            assert_eq!(first_bytes(&record), FirstBytes::Tls, "{record:?}");
        }
        for other in [
            [23, 3, 3, 0, 0, 7],
            [23, 2, 3, 0, 40, 7],
            [24, 3, 3, 0, 40, 7],
        ] {
            assert_eq!(first_bytes(&other), FirstBytes::Other, "{other:?}");
        }
    }
}
