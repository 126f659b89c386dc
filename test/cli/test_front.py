"""What `d2s` does without a command, with options before it, and for completion in a shell."""

from __future__ import annotations

import subprocess

import pytest

from d2s_ros.cli.main import main, make_parser


def test_without_a_command_it_lists_the_commands(capsys):
    assert main([]) == 2
    text = capsys.readouterr().err
    for command in ('build-map', 'localize', 'evaluate', 'update-map', 'map', 'demo'):
        assert command in text


@pytest.mark.parametrize('option', ['--quiet', '--debug'])
def test_options_of_all_commands_stand_before_and_after_the_command(option):
    parser = make_parser()
    name = option.strip('-')
    call = ['map', 'verify', 'MAP']
    assert getattr(parser.parse_args([option, *call]), name) is True
    assert getattr(parser.parse_args([*call, option]), name) is True
    assert getattr(parser.parse_args(call), name) is False


def test_debug_before_the_command_shows_the_traceback(capsys, tmp_path):
    assert main(['--debug', 'map', 'verify', str(tmp_path / 'none')]) == 3
    assert 'Traceback' in capsys.readouterr().err


def test_the_completion_script_knows_commands_and_options(capsys, tmp_path):
    pytest.importorskip('shtab', reason='shtab is not installed')
    assert main(['--print-completion', 'bash']) == 0
    script = capsys.readouterr().out
    assert 'build-map' in script
    assert '--refine-poses' in script
    path = tmp_path / 'completion.bash'
    path.write_text(script)
    subprocess.run(['bash', '-n', str(path)], check=True)
