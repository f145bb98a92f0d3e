"""Tests downloads, from a server on this computer: what came is resumed."""

import hashlib
import os
import socket

import archives
import numpy as np
import pytest

from splitnet.common.errors import UserError
from splitnet.data.download import download, md5_of

PAYLOAD = np.random.RandomState(0).bytes(20001)
MD5 = hashlib.md5(PAYLOAD).hexdigest()


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  with archives.serve(PAYLOAD) as (server, url):
    server.url = url
    yield server


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / 'file')


@pytest.fixture
def part(tmp_path):
  """The unfinished download."""
  return tmp_path / 'file.part'


def fetch(server, path):
  download(server.url, path, len(PAYLOAD), MD5, 'do without')


def assert_downloaded(path):
  with open(path, 'rb') as f:
    assert f.read() == PAYLOAD
  assert md5_of(path) == MD5 and os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def refusal(server, path):
  """Returns the one sentence of a download that fails, which names URL and the way out."""
  with pytest.raises(UserError) as error:
    fetch(server, path)
  said = str(error.value)
  assert server.url in said and said.endswith('do without') and '\n' not in said
  return said


def test_a_download_shows_its_progress(server, path, capsys):
  fetch(server, path)
  assert 'cifar-100-python.tar.gz: 100%' in capsys.readouterr().err
  assert_downloaded(path)
  assert server.asked == [None]


def test_a_download_is_resumed(server, path, part):
  part.write_bytes(PAYLOAD[:1000])
  fetch(server, path)
  assert_downloaded(path)
  assert server.asked == ['bytes=1000-']


def test_broken_connections_are_resumed(server, path):
  server.mode = ['cut', 'cut', 'range']
  fetch(server, path)
  assert_downloaded(path)
  second = len(PAYLOAD) // 2
  assert server.asked == [None, f'bytes={second}-', f'bytes={second + (len(PAYLOAD) - second) // 2}-']


def test_a_connection_that_stays_broken_keeps_what_came(server, path, part):
  server.mode = ['cut', 'drop']
  half = len(PAYLOAD) // 2
  assert f'{half} of {len(PAYLOAD)} bytes' in refusal(server, path)
  assert part.read_bytes() == PAYLOAD[:half]
  server.mode = ['range']
  fetch(server, path)
  assert_downloaded(path)
  assert server.asked[-1] == f'bytes={half}-'


@pytest.mark.parametrize('mode, asked', [('ignore', ['bytes=1000-']), ('416', ['bytes=1000-', None])])
def test_a_server_without_ranges(server, path, part, mode, asked):
  part.write_bytes(b'x' * 1000)  # would give a wrong checksum, were it kept
  server.mode = [mode, 'ignore']
  fetch(server, path)
  assert_downloaded(path)
  assert server.asked == asked


@pytest.mark.parametrize('extra, asked', [(b'', []), (b'x', [None])])
def test_complete_and_overlong_part(server, path, part, extra, asked):
  part.write_bytes(PAYLOAD + extra)
  fetch(server, path)
  assert_downloaded(path)
  assert server.asked == asked


@pytest.mark.parametrize('received', [0, 1000, None])
def test_a_wrong_checksum_removes_what_came(server, path, part, received):
  server.payload = PAYLOAD[:-1] + bytes([PAYLOAD[-1] ^ 1])
  part.write_bytes(server.payload[:received])
  said = refusal(server, path)
  assert MD5 in said and hashlib.md5(server.payload).hexdigest() in said and 'removed' in said
  assert os.listdir(os.path.dirname(path)) == []
  server.payload = PAYLOAD
  fetch(server, path)
  assert_downloaded(path)
  assert server.asked[-1] is None


@pytest.mark.parametrize('mode, said', [('page', 'offers 26 bytes'), ('shifted', 'another range'), ('404', '404')])
def test_wrong_answers_do_not_touch_what_came(server, path, part, mode, said):
  part.write_bytes(PAYLOAD[:1000])
  server.mode = [mode]
  assert said in refusal(server, path)
  assert part.read_bytes() == PAYLOAD[:1000]


def test_the_server_says_nothing_about_a_client_that_hangs_up(server, capfd):
  server.payload = bytes(1 << 24)  # more than the connection holds
  with socket.create_connection(('127.0.0.1', server.server_port)) as client:
    client.sendall(b'GET / HTTP/1.0\r\n\r\n')
    client.recv(100)
  server.server_close()  # waits for the answer to end
  assert capfd.readouterr().err == ''


def test_no_network(path, monkeypatch):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))  # bound but not listening: connections are refused
    monkeypatch.setenv('no_proxy', '*')
    url = f'http://127.0.0.1:{s.getsockname()[1]}/file'
    with pytest.raises(UserError) as error:
      download(url, path, len(PAYLOAD), MD5, 'do without')
  assert str(error.value).startswith(f'could not download {url} ([Errno') and str(error.value).endswith('do without')
  assert os.listdir(os.path.dirname(path)) == []


def test_trouble_with_the_file_itself_is_not_taken_for_the_networks(server, path, part):
  part.mkdir()
  with pytest.raises(OSError):
    fetch(server, path)
