//! The walker over HTTP/2's frames against frames that are known because the test has made them.

use proptest::{collection::vec, prelude::*, sample::Index};
use rebalancer_common::frames::{
    Frames, GOAWAY, HEADER, Header, MOST_FRAMES, MOST_PAYLOAD, Stop, flag, kind,
};

/// A frame as a server sends it, with a payload of bytes that mean nothing.
fn frame(kind: u8, flags: u8, stream: u32, length: usize) -> Vec<u8> {
    let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.resize(HEADER as usize + length, 0xa5);
    frame
}

/// Follows one send.
fn send(frames: &mut Frames, bytes: &[u8]) -> Result<(), Stop> {
    frames.send(bytes.len() as u32, |at| {
        let from = at as usize;
        bytes.get(from..from + 9)?.try_into().ok()
    })
}

/// What the first send leads to.
fn first(bytes: &[u8]) -> Result<bool, Stop> {
    let mut frames = Frames::default();
    send(&mut frames, bytes)?;
    Ok(frames.is_at_boundary())
}

/// A body that is made of whole frames, with fake ones everywhere.
fn of_fakes(length: usize) -> Vec<u8> {
    let fake = frame(kind::PING, 0, 0, 8);
    fake.iter().copied().cycle().take(length).collect()
}

/// Whole frames between two boundaries: one, or a header block in parts.
fn whole() -> impl Strategy<Value = Vec<u8>> {
    let stream = (0..1u32 << 30).prop_map(|n| n * 2 + 1);
    let data = (stream.clone(), 0..2000usize, any::<bool>()).prop_map(|(stream, length, end)| {
        let body = of_fakes(length.max(1));
        let mut frame = frame(kind::DATA, u8::from(end), stream, body.len());
        frame[HEADER as usize..].copy_from_slice(&body);
        frame
    });
    let block =
        (stream.clone(), 1..300usize, vec(0..300usize, 0..3)).prop_map(|(stream, length, more)| {
            let ends = |last: bool| if last { flag::END_HEADERS } else { 0 };
            let mut block = frame(kind::HEADERS, ends(more.is_empty()), stream, length);
            for (i, length) in more.iter().enumerate() {
                let flags = ends(i + 1 == more.len());
                block.extend(frame(kind::CONTINUATION, flags, stream, *length));
            }
            block
        });
    prop_oneof![
        data,
        block,
        Just(frame(kind::PING, flag::ACK, 0, 8)),
        Just(frame(kind::SETTINGS, flag::ACK, 0, 0)),
        Just(frame(kind::SETTINGS, 0, 0, 18)),
        stream
            .clone()
            .prop_map(|stream| frame(kind::WINDOW_UPDATE, 0, stream, 4)),
        stream.prop_map(|stream| frame(kind::RST_STREAM, 0, stream, 4)),
        Just(frame(kind::WINDOW_UPDATE, 0, 0, 4)),
    ]
}

proptest! {
    /// However a server cuts its frames into sends, only true boundaries are taken for some, and all of
    /// them are, up to a send that is not followed.
    #[test]
    fn boundaries_are_where_frames_end(
        wholes in vec(whole(), 1..30),
        cuts in vec(any::<Index>(), 0..20),
    ) {
        let stream = wholes.concat();
        let mut boundaries = vec![0];
        for whole in &wholes {
            boundaries.push(boundaries.last().unwrap() + whole.len());
        }
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        ends.extend(boundaries.iter().step_by(3));
        ends.push(stream.len());
        ends.sort_unstable();
        let (mut frames, mut from) = (Frames::default(), 0);
        for end in ends {
            match send(&mut frames, &stream[from..end]) {
                Ok(()) => prop_assert_eq!(frames.is_at_boundary(), boundaries.contains(&end)),
                Err(stop) => {
                    prop_assert!(matches!(stop, Stop::Split | Stop::TooMany), "{stop:?}");
                    return Ok(());
                }
            }
            from = end;
        }
        let newest = wholes.iter().map(|whole| Header::new(whole[..9].try_into().unwrap()));
        let newest = newest.filter(|header| header.kind == kind::HEADERS);
        prop_assert_eq!(frames.newest, newest.map(|header| header.stream).max().unwrap_or(0));
    }

    /// Where the stream does not begin with a frame, it is not followed for long.
    #[test]
    fn random_bytes_are_no_frames(bytes in vec(any::<u8>(), 9..100), sends in 4..8) {
        let mut frames = Frames::default();
        let stopped = (0..sends).any(|_| send(&mut frames, &bytes).is_err());
        // The first one may be taken for a long frame.
        prop_assert!(stopped || frames.left > 0 || Header::new(bytes[..9].try_into().unwrap()).length < 100);
    }
}

#[test]
fn what_is_not_understood_is_not_followed() {
    let header = |kind, flags, stream, length| first(&frame(kind, flags, stream, length));
    let no_frame = Err(Stop::NoFrame);
    // Zeros; text; PRIORITY; PUSH_PROMISE; an extension; a stream of the server's; the reserved bit.
    assert_eq!(first(&[0; 64]), Err(Stop::NoFrame));
    assert_eq!(first(b"HTTP/1.1 200 OK\r\n\r\n"), Err(Stop::TooLong));
    for other in [2, 5, 9, 12] {
        assert_eq!(header(other, 0, 1, 5), no_frame, "{other}");
    }
    assert_eq!(header(kind::DATA, 0, 2, 5), no_frame);
    assert_eq!(header(kind::DATA, 0, 1 << 31 | 1, 5), no_frame);
    assert_eq!(header(kind::DATA, 0x20, 1, 5), no_frame);
    assert_eq!(header(kind::HEADERS, 0x20, 1, 5), no_frame);
    assert_eq!(header(kind::PING, 0, 0, 7), no_frame);
    assert_eq!(header(kind::SETTINGS, 0, 0, 7), no_frame);
    assert_eq!(header(kind::SETTINGS, flag::ACK, 0, 6), no_frame);
    assert_eq!(header(kind::WINDOW_UPDATE, 0, 2, 4), no_frame);
    assert_eq!(first(&GOAWAY), Err(Stop::GoAway));
    let (most, many) = (MOST_PAYLOAD as usize, MOST_FRAMES as usize);
    assert_eq!(header(kind::DATA, 0, 1, most), Ok(true));
    assert_eq!(header(kind::DATA, 0, 1, most + 1), Err(Stop::TooLong));
    let ping = frame(kind::PING, 0, 0, 8);
    assert_eq!(first(&ping.repeat(many)), Ok(true));
    assert_eq!(first(&ping.repeat(many + 1)), Err(Stop::TooMany));
    let unseen = Frames::default().send(17, |_| None);
    assert_eq!(unseen, Err(Stop::Unreadable));
}

#[test]
fn nothing_may_stand_within_a_header_block_or_a_payload() {
    let open = frame(kind::HEADERS, 0, 5, 10);
    let mut frames = Frames::default();
    send(&mut frames, &open).unwrap();
    assert!(!frames.is_at_boundary());
    let mut other = frames;
    let ping = frame(kind::PING, 0, 0, 8);
    assert_eq!(send(&mut other, &ping), Err(Stop::NoFrame));
    let mut other = frames;
    let of_another = frame(kind::CONTINUATION, flag::END_HEADERS, 7, 3);
    assert_eq!(send(&mut other, &of_another), Err(Stop::NoFrame));
    send(&mut frames, &frame(kind::CONTINUATION, 0, 5, 3)).unwrap();
    assert!(!frames.is_at_boundary());
    let last = frame(kind::CONTINUATION, flag::END_HEADERS, 5, 3);
    send(&mut frames, &last[..11]).unwrap();
    assert!(!frames.is_at_boundary());
    send(&mut frames, &last[11..]).unwrap();
    assert!(frames.is_at_boundary());
    assert_eq!(frames.newest, 5);
}

/// The header in one send, its payload in others, an empty send in between.
#[test]
fn a_frame_may_come_in_many_sends() {
    let data = frame(kind::DATA, 0, 1, 100);
    let mut frames = Frames::default();
    for (part, at_boundary) in [
        (0..9, false),
        (9..9, false),
        (9..108, false),
        (108..109, true),
    ] {
        send(&mut frames, &data[part]).unwrap();
        assert_eq!(frames.is_at_boundary(), at_boundary);
    }
    assert_eq!(send(&mut frames, &data[..5]), Err(Stop::Split));
}
