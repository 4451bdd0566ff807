"""Failed log-ins: the next ones wait, on every connection, and nobody waits for somebody elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import LoginsThrottled
from security.identity.chain import BearerToken, ClientCertificate, NoCredential
from security.identity.failed_logins import FailedLoginOptions, FailedLogins, address_of, claimed_name
from security.identity.scram import ScramProof

HERE, THERE, ALICE, BOB = "192.0.2.1", "192.0.2.2", "user:alice", "user:bob"
OPTIONS = FailedLoginOptions()


class Clock:
    def __init__(self):
        self.ms = 1_000_000

    def __call__(self):
        return self.ms


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    """Few are free unless the test says otherwise, so that each bound is crossed alone."""
    quiet = {"failures_free": 1_000, "address_failures_free": 1_000, "name_failures_free": 1_000}
    return lambda **options: FailedLogins(FailedLoginOptions(**(quiet | options)), clock)


def fail(logins, times, address=HERE, name=ALICE):
    """So many failures at once, as if each had had its turn."""
    return [logins.failed(address, name, guessed=True) for _ in range(times)]


def waits(logins, clock, times, address=HERE, name=ALICE):
    """How long each of so many attempts waits, one after the other, all of them wrong."""
    found = []
    for _ in range(times):
        wait = logins.wait_ms(address, name)
        clock.ms += wait
        logins.failed(address, name, guessed=True)
        found.append(wait)
    return found


class TestOneNameFromOneAddress:
    def test_the_first_are_free_and_then_each_waits_twice_as_long_up_to_the_most(self, make, clock):
        logins = make(failures_free=3, delay_ms=100, delay_ms_max=1_000)
        assert waits(logins, clock, 9) == [0, 0, 0, 100, 200, 400, 800, 1_000, 1_000]

    def test_who_comes_late_enough_does_not_wait(self, make, clock):
        logins = make(failures_free=3)
        fail(logins, 3)
        clock.ms += 100
        assert logins.wait_ms(HERE, ALICE) == 0

    def test_many_connections_at_once_take_turns(self, make, clock):
        """None of them has been judged: the turns alone are what they wait for, and beyond the longest wait nobody is heard."""
        logins = make(failures_free=3, delay_ms=100, delay_ms_max=1_000, wait_ms_max=500)
        fail(logins, 3)
        found = [logins.wait_ms(HERE, ALICE) for _ in range(3)]
        assert found == [100, 300, 500]
        with pytest.raises(LoginsThrottled) as refused:
            logins.wait_ms(HERE, ALICE)
        assert (refused.value.retry_after_ms, refused.value.told) == (700, False)
        with pytest.raises(LoginsThrottled) as refused:
            logins.wait_ms(HERE, ALICE)
        assert (refused.value.retry_after_ms, refused.value.told) == (700, True)  # took no turn
        clock.ms += 200
        assert logins.wait_ms(HERE, ALICE) == 500

    def test_the_rate_of_guesses_has_a_bound_however_many_connections_there_are(self, make, clock):
        logins = make(failures_free=10)
        judged = 0
        for _ in range(60_000):  # a minute, a try each millisecond
            clock.ms += 1
            try:
                logins.wait_ms(HERE, ALICE)
            except LoginsThrottled:
                continue
            judged += 1
            logins.failed(HERE, ALICE, guessed=True)
        assert judged <= 10 + 5 + 60_000 // OPTIONS.delay_ms_max + OPTIONS.wait_ms_max // OPTIONS.delay_ms_max

    def test_the_right_one_ends_it(self, make, clock):
        logins = make(failures_free=3)
        fail(logins, 20)
        clock.ms += logins.wait_ms(HERE, ALICE)
        logins.succeeded(HERE, ALICE)
        assert logins.wait_ms(HERE, ALICE) == 0
        assert fail(logins, 1) == [0]
        assert logins.wait_ms(HERE, ALICE) == 0

    def test_it_is_forgotten_after_the_window(self, make, clock):
        logins = make(failures_free=3, window_ms=60_000)
        fail(logins, 20)
        clock.ms += 60_000
        assert logins.wait_ms(HERE, ALICE) == 0  # its turn has long come
        assert logins.wait_ms(HERE, ALICE) > 0
        clock.ms += 1
        assert [logins.wait_ms(HERE, ALICE) for _ in range(10)] == [0] * 10

    def test_neither_another_address_nor_another_name_waits(self, make, clock):
        logins = make(failures_free=3)
        fail(logins, 100)
        assert logins.wait_ms(THERE, ALICE) == 0
        assert logins.wait_ms(HERE, BOB) == 0


class TestAnyNamesFromOneAddress:
    def test_names_that_have_not_logged_in_there_wait_and_never_longer_than_the_most(self, make, clock):
        logins = make(address_failures_free=100, delay_ms=100, delay_ms_max=1_000)
        logins.succeeded(HERE, BOB)
        for number in range(99):
            fail(logins, 1, name=f"user:{number}")
        assert logins.wait_ms(HERE, "user:new") == 0
        found = []
        for number in range(6):
            fail(logins, 1, name=f"user:more-{number}")
            found.append(logins.wait_ms(HERE, "user:new"))
        assert found == [100, 200, 400, 800, 1_000, 1_000]
        assert [logins.wait_ms(HERE, "user:new") for _ in range(1_000)] == [1_000] * 1_000  # no turns: nobody is locked out
        assert logins.wait_ms(HERE, BOB) == 0
        assert logins.wait_ms(THERE, "user:new") == 0

    def test_what_was_not_guessed_does_not_count(self, make):
        """A device whose token has expired tries on and on; the others behind its address are not to suffer."""
        logins = make(address_failures_free=3)
        for number in range(100):
            logins.failed(HERE, f"token {number}", guessed=False)
        assert logins.wait_ms(HERE, "user:new") == 0

    def test_a_log_in_counts_for_as_long_as_the_window(self, make, clock):
        logins = make(address_failures_free=3, window_ms=60_000)
        logins.succeeded(HERE, BOB)
        clock.ms += 60_000
        fail(logins, 3)
        assert logins.wait_ms(HERE, BOB) == 0
        clock.ms += 1
        assert logins.wait_ms(HERE, BOB) == 100


class TestOneNameFromAnyAddresses:
    def test_its_refusals_are_answered_late_and_the_right_credential_at_once(self, make):
        logins = make(name_failures_free=100, delay_ms=100, delay_ms_max=1_000)
        found = [fail(logins, 1, address=f"192.0.2.{number}")[0] for number in range(105)]
        assert found == [0] * 99 + [100, 200, 400, 800, 1_000, 1_000]
        assert logins.wait_ms(THERE, ALICE) == 0

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=200))
    def test_whatever_happens_elsewhere_the_right_credential_is_never_delayed(self, happened):
        logins = FailedLogins(FailedLoginOptions(failures_free=1, address_failures_free=1, name_failures_free=1), Clock())
        for address, name, right in happened:
            if right:
                logins.succeeded(f"elsewhere {address}", f"user:{name}")
            else:
                logins.failed(f"elsewhere {address}", f"user:{name}", guessed=True)
        assert [logins.wait_ms(HERE, f"user:{name}") for name in range(4)] == [0] * 4


class TestBounds:
    def test_the_newest_are_remembered(self, make, clock):
        logins = make(failures_free=1, entries_max=10)
        for number in range(1_000):
            fail(logins, 1, address=f"a{number}", name=f"n{number}")
            logins.succeeded(f"s{number}", "x")
            stats = logins.stats()
            assert max(stats.addresses, stats.names, stats.pairs, stats.known) <= 10
        assert logins.wait_ms("a999", "n999") > 0
        assert logins.wait_ms("a990", "n990") > 0
        assert logins.wait_ms("a989", "n989") == 0

    def test_who_goes_on_failing_is_not_forgotten_for_others(self, make):
        logins = make(failures_free=3, entries_max=10)
        fail(logins, 3)
        for number in range(100):
            fail(logins, 1, name=f"user:{number}")
            fail(logins, 1)
        assert logins.wait_ms(HERE, ALICE) > 0

    def test_the_old_go_without_being_asked_for(self, make, clock):
        logins = make(window_ms=1_000)
        for number in range(50):
            fail(logins, 1, address=f"a{number}", name=f"n{number}")
        clock.ms += 1_001
        for number in range(25):
            fail(logins, 1, address=f"b{number}", name=f"m{number}")
        assert logins.stats().pairs == 25

    def test_the_longest_count_does_not_overflow_the_delay(self, make):
        logins = make(failures_free=1, delay_ms=1, delay_ms_max=86_400_000, wait_ms_max=86_400_000)
        fail(logins, 5_000)
        assert logins.wait_ms(HERE, ALICE) == 86_400_000


class TestNames:
    def test_a_user_by_name_and_a_token_by_a_hash_of_its_text(self):
        assert claimed_name(ScramProof("SCRAM-SHA-256", "alice", proved=False)) == ALICE
        names = {claimed_name(BearerToken(text)) for text in ("sprawl_a_b", "sprawl_a_c", "", "\ud800")}
        assert len(names) == 4
        assert not any("sprawl" in name for name in names)

    @pytest.mark.parametrize("credential", [NoCredential(), ClientCertificate(b"der")])
    def test_what_nobody_can_guess_at_has_none(self, credential):
        assert claimed_name(credential) is None

    @pytest.mark.parametrize(
        ("peer", "address"),
        [
            ("192.0.2.1:4711", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6:4711", "20010db800010002"),
            ("[2001:db8:1:2:ffff::1]:4711", "20010db800010002"),
            ("2001:db8:1:3::1:4711", "20010db800010003"),
            ("::ffff:192.0.2.1:4711", "192.0.2.1"),
            ("fe80::1%eth0:4711", "fe80000000000000"),
            ("::1:4711", "0000000000000000"),
            ("", ""),
            ("nothing", ""),
            ("a:b:c", "a:b"),
        ],
    )
    def test_addresses(self, peer, address):
        assert address_of(peer) == address
