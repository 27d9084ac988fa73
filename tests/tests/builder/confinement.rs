//! What a process of a build may do: as much as one of a container.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use whelk_tests::builds::{classic, docker, shows};
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, eventually};

/// Returns the lines between two marks.
fn between(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    let lines = lines.skip_while(|line| *line != "begin-of-lines").skip(1);
    let lines = lines.take_while(|line| *line != "end-of-lines");
    lines.map(str::to_owned).collect()
}

#[test]
fn processes_are_confined_like_those_of_containers() {
    let engine = Engine::start();
    // What the kernel says of a process, what it may not do, and what it sees.
    let script = "echo begin-of-lines; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; \
        for command in 'mount -t tmpfs x /tmp' 'mount -o remount,rw /sys' 'umount /proc' 'mknod /d b 8 0' 'unshare -m true' \
        'hostname other' 'chroot / true' 'head -c 1 /d' 'rm /d'; do \
        $command >/dev/null 2>&1 && echo \"$command works\" || echo \"$command fails\"; done; \
        test -s /proc/kcore && echo kcore; ls /proc/acpi /sys/firmware 2>/dev/null | wc -l; \
        df -k /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2; \
        cut -d ' ' -f 2,3 /proc/self/mounts | grep -vE ' overlay|/etc/|^/run' | sort; \
        ls /dev | tr '\\n' ' '; echo; ls /proc/self/fd | wc -l; ulimit -n; echo end-of-lines";
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    let container = between(&engine.docker(&run).ok());
    let heredoc = format!("FROM busybox\nRUN {script}\n");
    let context = engine.dockerfile("confined", &heredoc);
    let shown = classic(&engine).built(&context, &["--network", "none"]);
    let step = between(&shown);
    assert!(container.len() > 20, "{container:?}");
    assert_eq!(step, container);
    for command in [
        "mount -t", "mount -o", "umount", "unshare", "hostname", "head",
    ] {
        let line = step.iter().find(|line| line.starts_with(command));
        assert!(line.unwrap().ends_with(" fails"), "{line:?}");
    }
    shows(&step.join("\n"), &["Seccomp:\t2", "\n65536\n"]);
}

#[test]
fn processes_have_no_input_and_no_terminal() {
    let engine = Engine::start();
    let text = "FROM busybox\nRUN readlink -f /proc/self/fd/0; cat; read x || echo no-input; test -t 1 || echo no-terminal; tty; echo $PATH; hostname; pwd; id -u; env | sort\n";
    let context = engine.dockerfile("input", text);
    let shown = classic(&engine).built(&context, &["--network", "none"]);
    shows(
        &shown,
        &[
            "/dev/null\n",
            "no-input\n",
            "no-terminal\n",
            "not a tty\n",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
            "buildkitsandbox\n",
        ],
    );
}

#[test]
fn a_step_that_forks_without_end_harms_nobody() {
    let engine = Engine::start();
    let text = "FROM busybox\nRUN while :; do setsid sleep 1247 & done\n";
    let context = engine.dockerfile("forks", text);
    let cli = classic(&engine);
    let mut running = cli.spawn(&["build", context.to_str().unwrap()]);
    let one = || with_command(&["sleep", "1247"]);
    eventually("the step to fork", one);
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    while begin.elapsed() < Duration::from_millis(1500) {
        let asked = Instant::now();
        assert!(engine.answers());
        slowest = slowest.max(asked.elapsed());
    }
    running.signal(rustix::process::Signal::KILL);
    let _ = running.finish();
    // Milliseconds, unless the machine is busy with other tests, too.
    assert!(slowest < Duration::from_secs(30), "{slowest:?}");
    eventually("all processes to end", || one().is_none().then_some(()));
    engine.has_no_builds();
}

#[test]
fn processes_run_beside_each_other_up_to_a_limit() {
    const PER_PROCESSOR: usize = 4;
    let limit = PER_PROCESSOR * std::thread::available_parallelism().map_or(1, usize::from);
    // On larger machines it takes too many processes to reach the limit.
    let stages = (limit + 2).min(40);
    let (mut text, mut copies) = (String::new(), String::from("FROM busybox\n"));
    for stage in 0..stages {
        writeln!(text, "FROM busybox AS stage{stage}").unwrap();
        writeln!(text, "RUN --network=none : {stage}; sleep 2.9431").unwrap();
        writeln!(copies, "COPY --from=stage{stage} /etc/passwd /{stage}").unwrap();
    }
    let engine = Engine::start();
    let context = engine.dockerfile("many", &(text + &copies));
    let mut running = docker(&engine).spawn(&["build", context.to_str().unwrap()]);
    let is_step = |process: &PathBuf| {
        let command = fs::read(process.join("cmdline"));
        command.is_ok_and(|command| command == b"sleep\x002.9431\0")
    };
    let count = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let found = processes.map(|process| process.path()).filter(is_step);
        let found: Vec<PathBuf> = found.collect();
        // Those that are still there have run at the same time; others may have begun after the end of what was found before them.
        found.iter().filter(|process| is_step(process)).count()
    };
    let mut most = 0;
    while running.is_running() {
        most = most.max(count());
        std::thread::sleep(Duration::from_millis(10));
    }
    running.finish().ok();
    assert!((2..=limit).contains(&most), "{most} of {limit}");
    engine.has_no_builds();
}
