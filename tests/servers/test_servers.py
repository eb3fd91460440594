"""The servers that other tests rely on do what they are said to do."""

import httpx

from tests.servers.influx_server import InfluxServer


def test_influx_keeps_points_and_binds_parameters(influx_database):
    influx_database.write('m,user_id=o\\ "k n=1i,s="a b" 1000000001\nm,user_id=b n=2i 1000000002')
    assert influx_database.query("select * from m where user_id = $who", who='o "k') == [
        {"time": 1000000001, "user_id": 'o "k', "n": 1, "s": "a b"}
    ]
    assert [row["count"] for row in influx_database.query("select count(n) from m")] == [2]


def test_influx_keeps_its_port_and_its_points_over_a_kill(influx):
    with InfluxServer(influx._program, password="s3cret") as server:
        database = server.create_database()
        database.write("m n=1i 1")
        server.kill()
        server.start()
        assert database.query("select n from m") == [{"time": 1, "n": 1}]
        server.password = "wrong"
        assert server.call("POST", "/query", data={"q": "show databases"}).status_code == 401


def test_victoria_takes_what_influx_clients_send(victoria):
    answer = httpx.post(
        f"{victoria.url}/api/v2/write", params={"bucket": "b"}, content=b"probe,a=b n=1 1700000000000000000"
    )
    assert answer.status_code == 204
    (series,) = victoria.series("probe_n")
    assert series["timestamps"] == [1700000000000]
