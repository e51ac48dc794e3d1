//! PostgreSQL: an idle pool, transactions of several statements, and LISTEN.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream::poll_fn};
use tokio::time::sleep;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};
use xtask::{
    command::output,
    lab::{Lab, Pod},
};

use crate::setup::postgres_programs;

use super::{
    Defaults, Server, Situation,
    clients::{CONNECTIONS, Clients},
    server::{Running, folder},
    tally::Seen,
};

const PORT: u16 = 5432;
/// PostgreSQL refuses to run as root, and the package's user may not exist.
const NOBODY: [&str; 4] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
/// Several statements with pauses; an uncommitted transaction is lost.
const TRANSACTION: &str = "\
\\set account random(1, 1000)
BEGIN;
UPDATE accounts SET balance = balance - 1 WHERE id = :account;
\\sleep 400 ms
INSERT INTO transfers VALUES (:account);
\\sleep 400 ms
END;
";

const LISTEN: Situation = Situation {
    title: "PostgreSQL, LISTEN",
    client: "tokio-postgres",
    port: PORT,
    lost: "notifications missed",
    defaults: Defaults::Skips("statefulPort"),
    ever_quiet: true,
    run: listen,
};

pub(super) const SERVER: Server = Server {
    start,
    situations: &[
        Situation {
            title: "PostgreSQL, idle pool",
            client: "tokio-postgres, checks before use",
            lost: "queries failed",
            run: pool,
            ..LISTEN
        },
        Situation {
            title: "PostgreSQL, transactions of several statements",
            client: "pgbench",
            lost: "transactions lost",
            run: transactions,
            ..LISTEN
        },
        LISTEN,
    ],
};

fn start(lab: &Lab, pod: &Pod) -> Result<Running> {
    let bin = postgres_programs().context("no PostgreSQL in /usr/lib/postgresql")?;
    let folder = folder(lab, pod, "postgres")?;
    let data = folder.join("data");
    std::os::unix::fs::chown(&folder, Some(65534), Some(65534))?;
    let mut initdb = Command::new("setpriv");
    output(
        initdb
            .args(NOBODY)
            .arg(bin.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(&folder),
    )
    .context("initdb")?;
    let mut access = fs::OpenOptions::new()
        .append(true)
        .open(data.join("pg_hba.conf"))?;
    let line = format!("host all all {} trust\n", lab.client_subnet());
    std::io::Write::write_all(&mut access, line.as_bytes())?;
    let mut postgres = pod.host.command("setpriv");
    let postgres = postgres
        .args(NOBODY)
        .arg(bin.join("postgres"))
        .arg("-D")
        .arg(&data)
        .args(["-c", "listen_addresses=*", "-c", "fsync=off"])
        .arg("-c")
        .arg(format!("unix_socket_directories={}", folder.display()))
        .current_dir(&folder);
    Running::start(lab, pod, &folder, postgres, &[PORT])
}

fn config(host: &str) -> Config {
    let mut config = Config::new();
    config.host(host).port(PORT).user("postgres");
    config
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Like a pool: a connection that is known to be closed is replaced before use.
fn pool(clients: &Clients<'_>) -> Result<Seen> {
    let config = config(&clients.pod.to_string());
    clients.run(async |connection| {
        let Ok(client) = connect(&config).await else {
            return;
        };
        while !client.is_closed() {
            connection.count(client.batch_execute("SELECT 1").await);
            sleep(connection.think).await;
        }
    })
}

/// pgbench aborts a client whose connection breaks and does not reconnect it.
fn transactions(clients: &Clients<'_>) -> Result<Seen> {
    let bin = postgres_programs().context("no pgbench")?;
    let socket = clients.folder.display().to_string();
    make_tables(&socket).context("pgbench's tables")?;
    let script = clients.folder.join("transaction.sql");
    fs::write(&script, TRANSACTION)?;
    let output = clients
        .client
        .command(bin.join("pgbench"))
        .args(["--no-vacuum", "--username=postgres", "--jobs=1"])
        .arg(format!("--host={}", clients.pod))
        .arg(format!("--port={PORT}"))
        .arg(format!("--client={CONNECTIONS}"))
        .arg(format!("--time={}", clients.time_left().as_secs().max(1)))
        .arg("--file")
        .arg(script)
        .arg("postgres")
        .output()
        .context("start pgbench")?;
    let (out, problems) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    parse(&out, &problems).with_context(|| format!("pgbench: {}", problems.trim()))
}

fn parse(output: &str, problems: &str) -> Option<Seen> {
    let name = "number of transactions actually processed: ";
    let processed = output.lines().find_map(|line| line.strip_prefix(name))?;
    // "client 3 aborted in command 4 (SQL) of script 0; perhaps the backend died …"
    let aborted = |line: &&str| line.contains(" aborted in command ");
    let mut lost = problems.lines().filter(aborted);
    let problem = lost.next();
    Some(Seen {
        done: processed.split('/').next()?.trim().parse().ok()?,
        lost: u64::from(problem.is_some()) + lost.count() as u64,
        reconnects: 0,
        problem: problem.map(str::to_owned),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn make_tables(socket: &str) -> Result<()> {
    let client = connect(&config(socket)).await?;
    let tables = "CREATE TABLE accounts AS SELECT id, 0 AS balance \
                  FROM generate_series(1, 1000) id; CREATE TABLE transfers (account int)";
    Ok(client.batch_execute(tables).await?)
}

/// Listeners that reconnect at once, and a notifier on the server's unix socket.
fn listen(clients: &Clients<'_>) -> Result<Seen> {
    let listener_config = config(&clients.pod.to_string());
    let socket = clients.folder.display().to_string();
    let notify = async move {
        let client = connect(&config(&socket)).await?;
        for number in 0_u64.. {
            client
                .batch_execute(&format!("NOTIFY news, '{number}'"))
                .await?;
            sleep(Duration::from_millis(400)).await;
        }
        Ok(())
    };
    clients.run_with(notify, async |connection| {
        let Ok((client, mut stream)) = listener_config.connect(NoTls).await else {
            return;
        };
        let mut messages = poll_fn(move |context| stream.poll_message(context));
        // The response to LISTEN also arrives through the message stream.
        let listen = tokio::spawn(async move {
            let _ = client.batch_execute("LISTEN news").await;
            client
        });
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(news) = message
                && let Ok(number) = news.payload().parse()
            {
                connection.receive(number);
            }
        }
        listen.abort();
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_aborted_client_is_a_lost_transaction() {
        let output = "transaction type: t.sql\nnumber of transactions actually processed: 39\n";
        let problems = "pgbench: error: client 3 aborted in command 4 (SQL) of script 0; perhaps \
                        the backend died while processing\npgbench: error: Run was aborted\n";
        let seen = parse(output, problems).unwrap();
        assert_eq!((seen.done, seen.lost), (39, 1));
        assert_eq!(parse(output, "").unwrap().lost, 0);
        assert_eq!(parse("", problems), None);
    }
}
