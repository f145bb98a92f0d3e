"""Tests that waiting for other hosts tells which of them are missing."""

import socket
import time

from splitnet.parallel import waiting


def unused_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def test_the_states_of_addresses_are_told_apart():
  with socket.socket() as silent:
    silent.bind(('127.0.0.1', 0))
    silent.listen()
    assert waiting.state_of(f'127.0.0.1:{silent.getsockname()[1]}') == 'takes connections, but has not joined'
  assert waiting.state_of(f'127.0.0.1:{unused_port()}') == 'cannot be reached (Connection refused)'
  for address in ('no.such.host.invalid:1', 'a..b:1', '127.0.0.1:99999'):
    assert 'cannot be reached (' in waiting.state_of(address)


def test_a_note_comes_while_waiting_and_none_when_it_is_over(capfd):
  address = f'127.0.0.1:{unused_port()}'
  with waiting.telling_of_missing([address], first=3600):
    pass
  assert capfd.readouterr() == ('', '')
  with waiting.telling_of_missing([address], first=0):
    end, shown = time.monotonic() + 60, ''
    while not shown and time.monotonic() < end:
      time.sleep(0.05)
      shown = capfd.readouterr().err
  assert f'{address} cannot be reached (Connection refused)' in shown and shown.count('\n') == 1
