"""The example of docs/extend/environment.md."""

from examples import custom_environment


def test_the_point_learns_to_stay(tmp_path):
    result = custom_environment.main(str(tmp_path / 'run'))
    assert result.after['eval/return'] > 2 * result.before['eval/return']
