//! The systems that are booted.

use std::collections::HashMap;
use std::process::ExitCode;

use clustix_kernel_host::{
    Access, ChannelDescription, Config, End, Host, OnDeath, PdDescription, RegionDescription,
    RegionGrant, Start, SystemDescription,
};
use clustix_pd::wire::Exit;

fn pd(role: &str) -> PdDescription {
    PdDescription {
        role: role.into(),
        start: Start::Kernel,
        on_death: OnDeath::TellSupervisor,
        supervisor: None,
        budget: 64,
        capabilities: Vec::new(),
        regions: Vec::new(),
        keeps_descriptors: false,
        descriptors: Vec::new(),
        deadline_ms: 0,
        keeps_stubs: false,
        realtime: false,
    }
}

fn channel(client: &str, server: &str, badge: u64) -> ChannelDescription {
    ChannelDescription {
        client: client.into(),
        server: server.into(),
        name: None,
        badge,
        window: 256 * 1024,
    }
}

/// `tester` calls and supervises `echo` and `naughty`; its end is the node's.
fn system() -> SystemDescription {
    let mut tester = pd("tester");
    tester.on_death = OnDeath::EndNode;
    tester.capabilities = vec!["stubs".into(), "regions".into(), "node".into()];
    tester.regions = vec![RegionGrant { name: "shared".into(), access: Access::Read }];
    let mut echo = pd("echo");
    echo.supervisor = Some("tester".into());
    echo.regions = vec![RegionGrant { name: "shared".into(), access: Access::Write }];
    let mut naughty = pd("naughty");
    naughty.supervisor = Some("tester".into());
    naughty.start = Start::Supervisor;
    naughty.regions = vec![RegionGrant { name: "shared".into(), access: Access::Read }];
    let mut nuisance = pd("nuisance");
    nuisance.supervisor = Some("tester".into());
    nuisance.start = Start::Supervisor;
    SystemDescription {
        regions: vec![RegionDescription { name: "shared".into(), size: 1 << 30 }],
        pds: vec![tester, echo, naughty, nuisance],
        channels: vec![
            channel("tester", "echo", 0xbad9e),
            ChannelDescription {
                name: Some("echo-unbadged".into()),
                ..channel("tester", "echo", 0)
            },
            channel("tester", "naughty", 2),
            channel("naughty", "echo", 3),
            channel("tester", "nuisance", 4),
            channel("nuisance", "echo", 5),
        ],
    }
}

/// The kernel process of scenario `name`.
pub(crate) fn host(name: &str) -> ExitCode {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut system = system();
    match name {
        "restart" => {
            system.pds[1].on_death = OnDeath::Restart;
            system.pds[1].supervisor = None;
        }
        "lost" => {
            system.pds[1].on_death = OnDeath::EndNode;
        }
        _ => {}
    }
    let args = HashMap::from([("tester".to_owned(), name.as_bytes().to_vec())]);
    let end = Host::run(Config {
        node: 2,
        incarnation: 7,
        cluster: "test".into(),
        system,
        args,
        descriptors: HashMap::new(),
        stub_image: crate::stub_image::elf(),
        log: crate::log(),
        program: "/proc/self/exe".into(),
        arguments: vec!["pd".into()],
        trace_sandbox: std::env::var_os("CLUSTIX_TRACE_SANDBOX").is_some(),
    });
    match end {
        Ok(End::Lost { role, exit: Exit::Code(0) }) if role == "tester" => ExitCode::SUCCESS,
        Ok(end) => {
            eprintln!("{end:?}");
            ExitCode::from(end.exit_code() as u8)
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
