//! HTTP/1 framing: exchanges of any shape, cut into segments in any way.

use proptest::prelude::*;

use super::*;

/// Just before sequence numbers wrap around.
const BASE: Base = [u32::MAX - 20, u32::MAX - 90];

/// TCP's counters at the rest.
const START: Position = Position {
    received: 1_000,
    acked: 5_000,
};

/// TCP's counters once so many more bytes of this direction have come.
fn after(mut at: Position, direction: Direction, count: usize) -> Position {
    match direction {
        Direction::In => at.received += count as u64,
        Direction::Out => at.acked += count as u64,
    }
    at
}

/// A connection that was at rest, and TCP's counters after what both ends have sent since.
struct Dialogue {
    exchange: Exchange,
    at: Position,
}

impl Dialogue {
    fn at_rest() -> Self {
        let mut exchange = Exchange::default();
        exchange.based(BASE);
        exchange.rest(START);
        Self {
            exchange,
            at: START,
        }
    }

    fn client(&mut self, bytes: &[u8]) -> &mut Self {
        self.send(Direction::In, bytes)
    }

    fn server(&mut self, bytes: &[u8]) -> &mut Self {
        self.send(Direction::Out, bytes)
    }

    fn send(&mut self, direction: Direction, bytes: &[u8]) -> &mut Self {
        let seq = seqs(BASE, self.at)[direction as usize];
        self.at = after(self.at, direction, bytes.len());
        self.exchange.take_in(Piece {
            direction,
            seq,
            content: Content::Present(bytes),
        });
        self
    }

    fn state(&mut self) -> State {
        self.exchange.state(self.at)
    }

    #[track_caller]
    fn is(&mut self, state: State) -> &mut Self {
        assert_eq!(self.state(), state);
        self
    }

    fn rest(&mut self) -> &mut Self {
        self.exchange.rest(self.at);
        self
    }

    /// No prefix of the answer is complete.
    #[track_caller]
    fn is_complete_only_after(&mut self, answer: &[u8]) {
        for byte in answer {
            self.is(State::InProgress).server(&[*byte]);
        }
        self.is(State::Complete);
    }
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn the_state_is_lost_until_a_rest() {
    let mut exchange = Exchange::default();
    exchange.based(BASE);
    assert_eq!(exchange.state(START), State::Lost);
    exchange.rest(START);
    assert_eq!(exchange.state(START), State::Resting);
}

#[test]
fn an_answer_ends_as_its_framing_specifies() {
    for answer in [
        OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n00;last\r\nDigest: a\r\nB: c\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let mut dialogue = Dialogue::at_rest();
        dialogue.client(GET).is_complete_only_after(answer);
        dialogue.client(GET).is_complete_only_after(OK);
    }
}

#[test]
fn the_answer_to_head_has_no_body() {
    let mut dialogue = Dialogue::at_rest();
    dialogue
        .client(b"HEAD / HTTP/1.1\r\n\r\n")
        .is_complete_only_after(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    dialogue
        .client(b"HEAD / HTTP/1.1\r\n\r\n")
        .is_complete_only_after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
}

#[test]
fn an_answer_that_ends_with_its_connection_is_never_complete() {
    for head in [
        &b"HTTP/1.0 200 OK\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ] {
        let mut dialogue = Dialogue::at_rest();
        dialogue.client(GET).server(head);
        for _ in 0..10 {
            dialogue.is(State::InProgress).server(b"data: 1\r\n\r\n");
        }
    }
}

#[test]
fn a_request_ends_as_its_framing_specifies() {
    for request in [
        &b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"[..],
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/1.0\r\n\r\n",
    ] {
        let mut dialogue = Dialogue::at_rest();
        for byte in request {
            dialogue.client(&[*byte]);
        }
        dialogue.is_complete_only_after(OK);
        // An answer that overtakes its request: the rest of the request is under way.
        if request.starts_with(b"POST") {
            let mut dialogue = Dialogue::at_rest();
            let (most, last) = request.split_at(request.len() - 1);
            dialogue.client(most).server(OK).is(State::InProgress);
            dialogue.client(last).is(State::Complete);
        }
    }
}

#[test]
fn pipelined_requests_are_answered_one_by_one() {
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(&[GET, b"HEAD / HTTP/1.1\r\n\r\n", GET].concat());
    dialogue.is_complete_only_after(
        &[OK, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", OK].concat(),
    );
    // Several answers in one write, a request in the middle of one.
    let half = dialogue.client(GET).client(&GET[..5]).server(OK);
    half.is(State::InProgress);
    dialogue.client(&GET[5..]).server(OK).is(State::Complete);
}

#[test]
fn a_body_may_wait_for_100_continue() {
    const HEAD: &[u8] = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let mut dialogue = Dialogue::at_rest();
    let continues = b"HTTP/1.1 100 Continue\r\n\r\n";
    dialogue
        .client(HEAD)
        .server(continues)
        .is(State::InProgress);
    dialogue.client(b"body").is_complete_only_after(OK);
    // A final answer instead: whether the body comes is not known.
    dialogue.client(HEAD).server(OK).is(State::Lost);
}

#[test]
fn an_upgraded_connection_stays_upgraded() {
    let upgrade = b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let connect = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
    let switched = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let connected = b"HTTP/1.1 200 Connection established\r\n\r\n";
    let upgraded = State::Not(Other::Upgraded);
    for (request, answer) in [(&upgrade[..], &switched[..]), (connect, connected)] {
        let mut dialogue = Dialogue::at_rest();
        dialogue.client(request).is(State::InProgress);
        dialogue.server(answer).is(upgraded);
        dialogue.rest().is(upgraded);
    }
    // Refused: what follows is HTTP/1.
    for request in [&upgrade[..], connect] {
        let mut dialogue = Dialogue::at_rest();
        dialogue.client(request).client(GET);
        dialogue.server(b"HTTP/1.1 403 No\r\nContent-Length: 1\r\n\r\nx");
        dialogue.is_complete_only_after(OK);
    }
}

#[test]
fn another_protocol_is_recognized_at_the_second_rest() {
    for (bytes, other) in [
        (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], Other::Http2),
        (
            &[
                0, 0, 9, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 3, 1, 2, 3, 4,
            ],
            Other::Http2,
        ),
        (
            &[23, 3, 3, 0, 13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            Other::Tls,
        ),
        (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", Other::Unknown),
        (b"PUB a 5\r\nhello\r\n", Other::Unknown),
        (b"INVITE sip:a@b SIP/2.0\r\n", Other::Unknown),
        (b"OPTIONS * RTSP/1.0\r\n", Other::Unknown),
        (b"MAIL FROM:<a@b>\r\n", Other::Unknown),
        (
            &[0x81, 0x85, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
            Other::Unknown,
        ),
    ] {
        let mut dialogue = Dialogue::at_rest();
        // Not before another rest.
        dialogue.client(bytes).is(State::Lost);
        dialogue.client(bytes).is(State::Lost);
        dialogue.rest().is(State::Resting);
        dialogue.client(bytes).is(State::Not(other));
    }
}

/// The rest was within an answer.
#[test]
fn an_answer_without_a_request_is_lost() {
    for rest_of_an_answer in [&b"data: 2\n\n"[..], b"HTTP/1.1 200 OK\r\n"] {
        Dialogue::at_rest()
            .server(rest_of_an_answer)
            .is(State::Lost);
    }
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(GET).server(b"data: 2\n\n").is(State::Lost);
    dialogue.rest().client(GET).is_complete_only_after(OK);
}

/// By sequence numbers of data alone, not by times or acknowledgements.
#[test]
fn the_end_that_sent_last_is_known() {
    let mut exchange = Exchange::default();
    let mut at = START;
    let mut take_in = |exchange: &mut Exchange, direction: Direction, length: u32, again: u32| {
        let seq = seqs(BASE, at)[direction as usize].wrapping_sub(again);
        at = after(at, direction, length as usize);
        exchange.take_in(Piece {
            direction,
            seq,
            content: Content::Absent(length + again),
        });
        exchange.server_spoke_last(at)
    };
    assert!(!take_in(&mut exchange, Direction::In, 10, 0));
    exchange.based(BASE);
    assert!(take_in(&mut exchange, Direction::Out, 10, 0));
    assert!(take_in(&mut exchange, Direction::In, 0, 1)); // a probe, an old segment
    assert!(!take_in(&mut exchange, Direction::In, 10, 0));
    assert!(!take_in(&mut exchange, Direction::Out, 0, 10)); // sent again
    assert!(take_in(&mut exchange, Direction::Out, 5, 10));
    // Something that was not passed on.
    at.received += 1;
    assert!(!exchange.server_spoke_last(at));
}

/// Framing that implementations read differently is not trusted.
#[test]
fn ambiguous_framing_is_lost() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno field\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ] {
        let mut dialogue = Dialogue::at_rest();
        let state = dialogue.client(GET).server(answer).state();
        assert_eq!(state, State::Lost, "{}", answer.escape_ascii());
    }
    for request in [
        &b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 0x2\r\n\r\n",
    ] {
        let state = Dialogue::at_rest().client(request).state();
        assert_eq!(state, State::Lost, "{}", request.escape_ascii());
    }
}

#[test]
fn the_size_of_a_head_is_bounded() {
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(b"GET / HTTP/1.1\r\n");
    let field = format!("A: {}\r\n", "a".repeat(1000));
    for _ in 0..60 {
        dialogue.client(field.as_bytes()).is(State::InProgress);
    }
    for _ in 0..10 {
        dialogue.client(field.as_bytes());
    }
    dialogue.is(State::Lost);
    let mut dialogue = Dialogue::at_rest();
    for _ in 0..2000 {
        dialogue.client(GET);
    }
    dialogue.is(State::Lost);
}

/// TCP has counted bytes that the exchange has not been given.
#[test]
fn missing_data_is_detected_by_tcps_counters() {
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(GET).server(OK).is(State::Complete);
    dialogue.at.received += 1;
    dialogue.is(State::Lost);
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(GET);
    dialogue.at.received += GET.len() as u64; // another one
    dialogue.server(OK).is(State::Lost);
    // Seen before TCP has counted it.
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(GET).server(OK);
    dialogue.at.received -= 1;
    dialogue.is(State::InProgress);
}

/// TCP waits for an earlier segment.
#[test]
fn a_segment_out_of_order_is_in_progress() {
    let mut dialogue = Dialogue::at_rest();
    dialogue.client(GET).server(OK);
    let at = dialogue.at;
    dialogue.at.received += 10;
    dialogue.client(GET);
    dialogue.at = at;
    assert_eq!(dialogue.state(), State::InProgress);
}

#[test]
fn a_long_body_is_skipped() {
    let mut dialogue = Dialogue::at_rest();
    dialogue
        .client(GET)
        .server(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n");
    assert_eq!(dialogue.exchange.skip_to(Direction::In), None);
    let mut left = 5_000_000_000_u64;
    while left > 0 {
        assert_eq!(dialogue.state(), State::InProgress);
        let skip_to = dialogue.exchange.skip_to(Direction::Out).unwrap();
        let next = seqs(BASE, dialogue.at)[1];
        let skipped = u64::from(skip_to.wrapping_sub(next));
        assert!(skipped <= left && skipped < 1 << 31);
        // Some of it is sent, and not passed on.
        let some = skipped / 2;
        dialogue.at.acked += some;
        assert_eq!(dialogue.state(), State::InProgress);
        assert_eq!(dialogue.exchange.skip_to(Direction::Out), Some(skip_to));
        // The last segment that is skipped is passed on.
        dialogue.at.acked += skipped - some;
        dialogue.exchange.take_in(Piece {
            direction: Direction::Out,
            seq: skip_to.wrapping_sub(100),
            content: Content::Absent(100),
        });
        left -= skipped;
        if left < 16 << 10 {
            dialogue.server(&vec![0; left as usize]);
            left = 0;
        }
    }
    assert_eq!(dialogue.state(), State::Complete);
    assert_eq!(dialogue.exchange.skip_to(Direction::Out), None);
    // What is between bodies must not be skipped.
    dialogue.client(GET);
    dialogue.exchange.take_in(Piece {
        direction: Direction::Out,
        seq: seqs(BASE, dialogue.at)[1],
        content: Content::Absent(10),
    });
    assert_eq!(dialogue.state(), State::Lost);
}

/// The base becomes known with the first segment that the server sends.
#[test]
fn data_before_the_base_is_kept_until_it_is_known() {
    let mut dialogue = Dialogue {
        exchange: Exchange::default(),
        at: START,
    };
    dialogue.rest().is(State::Resting);
    dialogue.client(GET).is(State::InProgress);
    dialogue.exchange.based(BASE);
    dialogue.is_complete_only_after(OK);
}

/// Requests and their answers, each a message.
fn exchanges() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let request = prop_oneof![
        Just(GET.to_vec()),
        proptest::collection::vec(any::<u8>(), 0..50).prop_map(|body| {
            let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
            [head.into_bytes(), body].concat()
        }),
        chunks().prop_map(|body| {
            let head = &b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"[..];
            [head, &body].concat()
        }),
    ];
    let answer = prop_oneof![
        Just(OK.to_vec()),
        Just(b"HTTP/1.1 204 No\r\n\r\n".to_vec()),
        Just([b"HTTP/1.1 103 Early\r\nA: b\r\n\r\n", OK].concat()),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(|body| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            [head.into_bytes(), body].concat()
        }),
        chunks().prop_map(|body| {
            let head = &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..];
            [head, &body].concat()
        }),
    ];
    proptest::collection::vec((request, answer), 1..4)
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let chunk = proptest::collection::vec(any::<u8>(), 1..40);
    proptest::collection::vec(chunk, 0..4).prop_map(|chunks| {
        let mut body = Vec::new();
        for chunk in chunks {
            body.extend(format!("{:x};a=b\r\n", chunk.len()).into_bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\nA: b\r\n\r\n");
        body
    })
}

/// How a message is cut into segments, and which of those are retransmitted or out of order.
fn cuts() -> impl Strategy<Value = Vec<(usize, bool, bool)>> {
    proptest::collection::vec((1..60_usize, any::<bool>(), any::<bool>()), 40)
}

/// Sends a message in segments and passes the state after each to `check`. TCP counts data in order.
fn in_segments(
    dialogue: &mut Dialogue,
    direction: Direction,
    message: &[u8],
    cuts: &[(usize, bool, bool)],
    mut check: impl FnMut(State, bool),
) {
    let start = dialogue.at;
    let mut segments = Vec::new();
    let mut from = 0;
    for (size, again, late) in cuts.iter().cycle() {
        if from == message.len() {
            break;
        }
        let to = (from + size).min(message.len());
        segments.push((from, to));
        if *again {
            segments.push((from.saturating_sub(7), to));
        }
        let count = segments.len();
        if *late && count > 1 {
            segments.swap(count - 1, count - 2);
        }
        from = to;
    }
    let mut received = vec![false; message.len()];
    for (from, to) in segments {
        dialogue.exchange.take_in(Piece {
            direction,
            seq: seqs(BASE, after(start, direction, from))[direction as usize],
            content: Content::Present(&message[from..to]),
        });
        received[from..to].fill(true);
        let in_order = received.iter().take_while(|is_there| **is_there).count();
        dialogue.at = after(start, direction, in_order);
        check(dialogue.state(), in_order == message.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn only_a_whole_answer_is_complete_however_it_is_cut(
        exchanges in exchanges(),
        cuts in cuts(),
        more in cuts(),
    ) {
        let mut dialogue = Dialogue::at_rest();
        for (request, answer) in exchanges {
            in_segments(&mut dialogue, Direction::In, &request, &cuts, |state, _| {
                assert_eq!(state, State::InProgress);
            });
            in_segments(&mut dialogue, Direction::Out, &answer, &more, |state, whole| {
                let expected = if whole { State::Complete } else { State::InProgress };
                assert_eq!(state, expected);
            });
        }
    }

    /// All requests first, then all answers.
    #[test]
    fn a_pipeline_is_complete_after_its_last_answer(
        exchanges in exchanges(),
        cuts in cuts(),
    ) {
        let mut dialogue = Dialogue::at_rest();
        let (requests, answers): (Vec<_>, Vec<_>) = exchanges.into_iter().unzip();
        in_segments(&mut dialogue, Direction::In, &requests.concat(), &cuts, |_, _| {});
        in_segments(&mut dialogue, Direction::Out, &answers.concat(), &cuts, |state, whole| {
            let expected = if whole { State::Complete } else { State::InProgress };
            assert_eq!(state, expected);
        });
    }
}
