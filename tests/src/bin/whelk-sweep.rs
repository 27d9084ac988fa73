//! `whelk-sweep PID`: waits until its standard input ends, which a test program keeps open while it
//! runs, and removes what that process left behind.

use std::io::Read;

fn main() {
    let pid = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("usage: whelk-sweep PID");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    whelk_tests::sweep(pid);
}
