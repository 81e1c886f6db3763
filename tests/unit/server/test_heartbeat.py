"""A run stays alive while its server is too busy to answer."""

import httpx

from blindmerge_server.flower_run import _tried_again


def _failed(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://fl.example.org")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code))


def test_a_heartbeat_that_fails_is_one_to_be_sent_again() -> None:
    answers: list[bool | Exception] = [_failed(500), False, True]

    def beat() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    patient = _tried_again(beat)
    assert [patient(), patient(), patient()] == [False, False, True]
