//! Calls of `Control` besides builds, and those of `Content`.

use whelk_buildkit::grpc::{Code, Result};
use whelk_buildkit::pb::content::{
    InfoRequest, InfoResponse as ContentInfo, ReadContentRequest, ReadContentResponse,
};
use whelk_buildkit::pb::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest, DiskUsageRequest,
    DiskUsageResponse, InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest,
    SolveRequest, UpdateBuildHistoryRequest, UsageRecord,
};
use whelk_buildkit::pb::gateway::EvaluateRequest;
use whelk_buildkit::pb::{HealthCheckResponse, Unused};
use whelk_tests::builds::docker;
use whelk_tests::grpc::Grpc;
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, eventually};

use crate::{Made, NOTHING, fails, run, script};

const CONTENT: &str = "containerd.services.content.v1.Content";

#[test]
fn the_worker_is_described() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let info: InfoResponse = grpc.control("Info", &NOTHING).unwrap();
    let version = info.buildkit_version.unwrap();
    assert_eq!(version.package, "github.com/moby/buildkit");
    assert!(!version.dockerfile_version.is_empty());
    let list = |filter: &str| {
        let filter = vec![filter.to_owned()];
        let request = ListWorkersRequest { filter };
        grpc.control::<ListWorkersResponse>("ListWorkers", &request)
    };
    let all = list("").unwrap().record;
    assert_eq!(all.len(), 1);
    let worker = &all[0];
    assert_eq!(worker.platforms[0].os, "linux");
    assert_eq!(worker.gc_policy.len(), 4);
    assert!(worker.buildkit_version.is_some());
    let own = format!("id=={}", worker.id);
    for (filter, count) in [(&*own, 1), ("id==other", 0)] {
        assert_eq!(list(filter).unwrap().record.len(), count, "{filter}");
    }
    fails(list("labels.a==b"), Code::Unimplemented, "labels.a==b");
    let check = "grpc.health.v1.Health/Check";
    let health: HealthCheckResponse = grpc.begin(check, &[], &NOTHING).wait().unwrap();
    assert_eq!(health.status, HealthCheckResponse::SERVING);
    // Traces of clients are taken, and not kept.
    let export = "opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let _: Unused = grpc.begin(export, &[], &NOTHING).wait().unwrap();
}

#[test]
fn records_of_the_cache_are_found_by_all_fields() {
    let engine = Engine::start();
    let text = "FROM busybox\nRUN --network=none --mount=type=cache,id=the-cache,target=/c echo one > /one\nRUN --network=none echo two > /two\n";
    docker(&engine).built(engine.dockerfile("usage", text), &["-t", "usage"]);
    let other = "FROM busybox\nRUN --network=none echo three > /three\n";
    docker(&engine).built(engine.dockerfile("other", other), &["-t", "other"]);
    engine.docker(&["rmi", "other"]).ok();
    let grpc = Grpc::connect(&engine);
    let list = |filters: &[&str], age_limit: i64| {
        let filter = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = DiskUsageRequest { filter, age_limit };
        let answer = grpc.control::<DiskUsageResponse>("DiskUsage", &request);
        answer.map(|answer| answer.record)
    };
    let count = |filters: &[&str]| list(filters, 0).unwrap().len();
    let is_idle = || (count(&["inuse"]) == 0).then_some(());
    eventually("the builds to end", is_idle);
    let one = &list(&["description~=echo one"], 0).unwrap()[0];
    let two = &list(&["description~=echo two"], 0).unwrap()[0];
    assert_eq!(two.parents, std::slice::from_ref(&one.id));
    let (id, parent) = (format!("id=={}", two.id), format!("parent=={}", one.id));
    for (filters, expected) in [
        (&["type==exec.cachemount"][..], 1),
        (&["type==exec.cachemount,description~=the-cache"], 1),
        (&["type==exec.cachemount,description~=other"], 0),
        (&["type==exec.cachemount", "description~=echo two"], 2),
        (&[id.as_str()], 1),
        (&[parent.as_str()], 1),
        (&["shared,description~=echo two"], 1),
        (&["private,description~=echo two"], 0),
        (&["shared==true,description~=echo three"], 0),
        (&["private==true,description~=echo three"], 1),
        (&["type==regular,description~=echo (one|two|three)"], 3),
        (&["type!=regular,description~=echo (one|two|three)"], 0),
    ] {
        assert_eq!(count(filters), expected, "{filters:?}");
    }
    assert_eq!(count(&["inuse==false"]), count(&[]));
    for wrong in ["colour==red", "id~=("] {
        fails(list(&[wrong], 0), Code::InvalidArgument, "invalid filter");
    }
    // Only what was not used for an hour.
    assert!(list(&[], 3600 * 1_000_000_000).unwrap().is_empty());

    // A build uses what it has made, as long as it goes on.
    let bridge = grpc.build("held", SolveRequest::default());
    let mut made = Made::default();
    let base = made.script("echo four > /four");
    let last = made.exec(script("sleep 4331"), &[base]);
    let reference = bridge.solve(&made.definition(last)).unwrap().id;
    let evaluate = EvaluateRequest { r#ref: reference };
    let running = bridge.begin::<Unused>("Evaluate", &evaluate);
    let step = || with_command(&["sleep", "4331"]);
    eventually("the step to run", step);
    // A result is recorded while the next step begins.
    let is_used = || (count(&["inuse"]) > 0).then_some(());
    eventually("the first result to be in use", is_used);
    let prune = |filter: &str| -> Result<Vec<UsageRecord>> {
        let request = PruneRequest {
            filter: vec![filter.to_owned()],
            all: true,
            ..PruneRequest::default()
        };
        grpc.control_stream("Prune", &request)
    };
    assert!(prune("inuse").unwrap().is_empty());
    drop((running, bridge));
    eventually("the step to end", || step().is_none().then_some(()));
    eventually("nothing to be in use", is_idle);
    fails(
        prune("colour==red"),
        Code::InvalidArgument,
        "invalid filter",
    );
    // Just what the filter means goes, and is told.
    let before = count(&[]);
    let gone = prune("description~=echo three").unwrap();
    assert_eq!(gone.len(), 1);
    assert!(gone[0].description.contains("echo three"), "{gone:?}");
    assert_eq!(count(&[]), before - 1);
    assert_eq!(count(&["description~=echo three"]), 0);
    engine.has_no_builds();
}

#[test]
fn the_cache_has_all_results_of_steps_that_have_ended() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("steps", SolveRequest::default());
    let request = DiskUsageRequest::default();
    for count in 1..=4 {
        // It takes its time to be recorded.
        let text = format!("dd if=/dev/urandom of=/{count} bs=1M count=8 2>/dev/null");
        bridge.evaluate(&run(&text)).unwrap();
        let usage: DiskUsageResponse = grpc.control("DiskUsage", &request).unwrap();
        assert_eq!(usage.record.len(), count, "{:?}", usage.record);
        // By what the step does, if the definition gives it no name.
        let name = format!("/bin/sh -c {text}");
        let mut records = usage.record.iter();
        assert!(records.any(|record| record.description == name), "{name}");
    }
    bridge.finish(None).unwrap();
}

#[test]
fn records_of_builds_are_kept_told_and_read() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let heard = grpc.listen::<BuildHistoryEvent>(
        "ListenBuildHistory",
        &BuildHistoryRequest {
            r#ref: "recorded".into(),
            ..BuildHistoryRequest::default()
        },
    );
    let monitor = grpc.listen::<BuildHistoryEvent>(
        "ListenBuildHistory",
        &BuildHistoryRequest {
            r#ref: "later".into(),
            active_only: true,
            ..BuildHistoryRequest::default()
        },
    );
    let list = |request: BuildHistoryRequest| {
        let request = BuildHistoryRequest {
            early_exit: true,
            ..request
        };
        grpc.control_stream::<BuildHistoryEvent>("ListenBuildHistory", &request)
    };
    let of = |name: &str| {
        let request = BuildHistoryRequest {
            r#ref: name.into(),
            ..BuildHistoryRequest::default()
        };
        list(request).unwrap()
    };
    assert!(of("recorded").is_empty());
    // What clients ask about, and what they build.
    let internal = SolveRequest {
        internal: true,
        ..SolveRequest::default()
    };
    grpc.build("internal", internal).finish(None).unwrap();
    let bridge = grpc.build("recorded", SolveRequest::default());
    bridge.evaluate(&run("echo said")).unwrap();
    let active = BuildHistoryRequest {
        active_only: true,
        ..BuildHistoryRequest::default()
    };
    assert_eq!(list(active.clone()).unwrap().len(), 1);
    eventually("its start", || (heard.so_far().len() == 1).then_some(()));
    bridge.finish(None).unwrap();
    assert!(list(active).unwrap().is_empty());
    let bridge = grpc.build("later", SolveRequest::default());
    eventually("the start", || (monitor.so_far().len() == 1).then_some(()));
    bridge.finish(None).unwrap();
    let names = |limit: i32| {
        let request = BuildHistoryRequest {
            limit,
            ..BuildHistoryRequest::default()
        };
        let events = list(request).unwrap().into_iter();
        let names = events.map(|event| event.record.unwrap().r#ref);
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(0), ["later", "recorded"]);
    assert_eq!(names(1), ["later"]);

    let update = |name: &str, change: fn(&mut UpdateBuildHistoryRequest)| {
        let mut request = UpdateBuildHistoryRequest {
            r#ref: name.into(),
            ..UpdateBuildHistoryRequest::default()
        };
        change(&mut request);
        grpc.control::<Unused>("UpdateBuildHistory", &request)
    };
    // The trace is added once.
    for _ in 0..2 {
        update("recorded", |request| request.finalize = true).unwrap();
    }
    update("recorded", |request| request.pinned = true).unwrap();
    eventually("the events", || (heard.so_far().len() == 4).then_some(()));
    // Who asks for builds that run is told of their ends, too.
    eventually("the end", || (monitor.so_far().len() == 2).then_some(()));
    engine.kill9();
    engine.restart();
    let grpc = Grpc::connect(&engine);
    let request = BuildHistoryRequest {
        r#ref: "recorded".into(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let found = grpc.control_stream::<BuildHistoryEvent>("ListenBuildHistory", &request);
    let record = found.unwrap().remove(0).record.unwrap();
    assert!(record.pinned);
    let trace = record.trace.unwrap();
    let kinds: Vec<i32> = heard.so_far().iter().map(|event| event.kind).collect();
    let [started, complete] = [
        BuildHistoryEventType::Started,
        BuildHistoryEventType::Complete,
    ]
    .map(i32::from);
    assert_eq!(kinds, [started, complete, complete, complete]);
    let kinds: Vec<i32> = monitor.so_far().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [started, complete]);

    // Its blobs can be read, in parts, and nothing else.
    let logs = record.logs.unwrap();
    let request = InfoRequest {
        digest: logs.digest.clone(),
    };
    let info = format!("{CONTENT}/Info");
    let info: ContentInfo = grpc.begin(&info, &[], &request).wait().unwrap();
    assert_eq!(info.info.unwrap().size, logs.size);
    let read = |digest: &str, offset: i64, size: i64| -> Result<Vec<u8>> {
        let digest = digest.to_owned();
        let request = ReadContentRequest {
            digest,
            offset,
            size,
        };
        let parts = grpc.stream::<ReadContentResponse>(&format!("{CONTENT}/Read"), &request)?;
        let parts = parts.iter().map(|part| &*part.data);
        Ok(parts.collect::<Vec<_>>().concat())
    };
    let whole = read(&logs.digest, 0, 0).unwrap();
    assert_eq!(i64::try_from(whole.len()), Ok(logs.size));
    assert!(String::from_utf8_lossy(&whole).contains("said"));
    assert_eq!(read(&logs.digest, 3, 5), Ok(whole[3..8].to_vec()));
    // A span of the build, and one of each step.
    let spans = String::from_utf8(read(&trace.digest, 0, 0).unwrap()).unwrap();
    let names = spans.lines().filter(|line| line.contains("\"TraceID\""));
    assert!(names.count() >= 3, "{spans}");
    assert_eq!(read(&logs.digest, logs.size, 0), Ok(Vec::new()));
    for (offset, size) in [(-1, 0), (0, -1), (logs.size + 1, 0)] {
        let answer = read(&logs.digest, offset, size);
        fails(answer, Code::InvalidArgument, "the range");
    }
    let unknown = format!("sha256:{}", "0".repeat(64));
    fails(read(&unknown, 0, 0), Code::NotFound, "not found");
    assert!(read("../../../etc/passwd", 0, 0).is_err());
    for method in ["Write", "Delete", "List"] {
        let call = grpc.begin::<Unused>(&format!("{CONTENT}/{method}"), &[], &NOTHING);
        fails(call.wait(), Code::Unimplemented, "can only be read");
    }

    let delete = UpdateBuildHistoryRequest {
        r#ref: "recorded".into(),
        delete: true,
        ..UpdateBuildHistoryRequest::default()
    };
    let delete = || grpc.control::<Unused>("UpdateBuildHistory", &delete);
    delete().unwrap();
    fails(delete(), Code::NotFound, "recorded");
    fails(read(&logs.digest, 0, 0), Code::NotFound, "not found");
}
