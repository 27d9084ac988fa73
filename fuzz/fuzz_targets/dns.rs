//! Answers a DNS query. An answer must fit its transport and belong to the query.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whelk_network::dns::{self, Known, Question, Verdict};

fuzz_target!(|packet: &[u8]| {
    for stream in [false, true] {
        let verdict = dns::answer(packet, stream, |question| match question {
            Question::Address(name) if name.len() % 3 == 0 => {
                Known::Addresses((0..=u8::MAX).map(|last| [192, 0, 2, last].into()).collect())
            }
            Question::Name(_) => Known::Name("container.network".to_owned()),
            Question::Address(_) => Known::Nothing,
        });
        if let Verdict::Reply(reply) = verdict {
            assert!(reply.len() <= if stream { 65_535 } else { 1232 });
            assert_eq!(reply[..2], packet[..2], "the answer has the query's id");
        }
    }
    let _ = dns::failure(packet);
    let _ = dns::is_refusal(packet);
});
