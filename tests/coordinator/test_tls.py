"""TLS on the device plane: real wss with a private authority, a certificate that changes, and devices that show one."""

import asyncio
import ssl

import pytest
import trustme
from websockets.exceptions import InvalidMessage

from coordinator import tls
from coordinator.tls import Certificates
from tap_core.errors import UsageError

ONE_ROUND = {"total": 1, "clients_per_round": 1, "min_devices": 1}
IMAGES = {"kinds": 10}


def write(certificate, place):
    """The files of a certificate: (chain, key)."""
    chain, key = place / "chain.pem", place / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return chain, key


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def authority():
    return trustme.CA()


def serve_tls(served, directory, authority, place, *options):
    chain, key = write(authority.issue_cert("127.0.0.1", "localhost"), place)
    return served(directory, "--tls-cert", str(chain), "--tls-key", str(key), *options)


def test_a_device_takes_part_over_wss(federation, enroll, served, authority, tmp_path):
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", IMAGES)
    device.tls = trusting(authority)
    service = serve_tls(served, directory, authority, tmp_path)
    assert service.events("serving")[0]["tls"] is True

    async def main():
        assert (await device.take_part(service.url)).code == "done"
        assert device.socket.transport.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")

    asyncio.run(main())
    assert service.terminate() == 0


def test_a_certificate_of_another_authority_is_not_trusted(federation, enroll, served, authority, tmp_path):
    directory, manifest = federation()
    device = enroll(directory, manifest, "one", IMAGES)
    device.tls = trusting(trustme.CA())
    service = serve_tls(served, directory, authority, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        asyncio.run(device.connect(service.url))


def test_mutual_tls_lets_in_who_shows_a_certificate(federation, enroll, served, authority, tmp_path):
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", IMAGES)
    devices = trustme.CA()
    devices.cert_pem.write_to_path(tmp_path / "devices.pem")
    service = serve_tls(served, directory, authority, tmp_path, "--tls-client-ca", str(tmp_path / "devices.pem"))

    async def main():
        device.tls = trusting(authority)
        with pytest.raises((InvalidMessage, ssl.SSLError, OSError)):
            await device.connect(service.url)
        device.tls = trusting(authority)
        trustme.CA().issue_cert("one@devices").configure_cert(device.tls)
        with pytest.raises((InvalidMessage, ssl.SSLError, OSError)):
            await device.connect(service.url)
        device.tls = trusting(authority)
        devices.issue_cert("one@devices").configure_cert(device.tls)
        assert (await device.take_part(service.url)).code == "done"

    asyncio.run(main())


def test_a_new_certificate_is_taken_up_while_a_device_is_connected(
    federation, enroll, running, authority, tmp_path, monkeypatch
):
    directory, manifest = federation(**ONE_ROUND)
    device = enroll(directory, manifest, "one", IMAGES)
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.02)
    certificates = Certificates(*write(authority.issue_cert("127.0.0.1"), tmp_path))

    async def serial(port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority))
        found = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        writer.close()
        return found

    async def main():
        async with running(directory, manifest) as service:
            port = await service.plane.start("127.0.0.1", 0, certificates.context)
            watching = asyncio.ensure_future(certificates.watch())
            device.tls = trusting(authority)
            assert (await device.connect(f"wss://127.0.0.1:{port}")).type == "welcome"
            first = await serial(port)
            (tmp_path / "chain.pem").write_text("broken")
            await asyncio.sleep(0.1)
            assert await serial(port) == first  # the old one stays
            write(authority.issue_cert("127.0.0.1"), tmp_path)
            limit = asyncio.get_running_loop().time() + 10
            while await serial(port) == first:
                assert asyncio.get_running_loop().time() < limit
                await asyncio.sleep(0.02)
            assert (await device.hear()).type == "train"  # the connection of before is as it was
            assert (await device.take_part(f"wss://127.0.0.1:{port}")).code == "done"
            watching.cancel()

    asyncio.run(main())


def test_half_a_change_of_the_files_reaches_no_connection(authority, tmp_path):
    certificates = Certificates(*write(authority.issue_cert("one.example"), tmp_path))
    assert certificates.look() is False
    other = authority.issue_cert("two.example")
    (tmp_path / "chain.pem").write_bytes(other.cert_chain_pems[0].bytes())
    assert certificates.look() is False  # the key is still the old one
    (tmp_path / "key.pem").write_bytes(other.private_key_pem.bytes())
    assert certificates.look() is True and certificates.look() is False
    (tmp_path / "key.pem").unlink()
    assert certificates.look() is False


def test_files_that_cannot_be_used_are_refused_in_one_line(authority, tmp_path):
    chain, key = write(authority.issue_cert("one.example"), tmp_path)
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for arguments in [
        (tmp_path / "absent.pem", key),
        (chain, chain),
        (tmp_path / "nonsense.pem", key),
        (chain, key, tmp_path / "absent.pem"),
        (chain, key, tmp_path / "nonsense.pem"),
    ]:
        with pytest.raises(UsageError, match="cannot use") as error:
            Certificates(*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [("--tls-cert", "a"), ("--tls-key", "a"), ("--tls-client-ca", "a"), ("--tls-cert", "a", "--tls-key", "b")],
)
def test_settings_of_tls_that_are_not_whole_end_with_2(federation, command, options):
    directory, _ = federation()
    done = command("serve", directory, "--port", 0, "--http-port", 0, *options, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
