"""What is compared: the cases of `make bench-ingest`, as far as the environment asks for them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bench import instances
from bench.instances import Names, Template, new_run
from bench.sender import Manner, Order
from bench.servers import Nagle

OURS = "edgepacs"
LIMIT = "limit"
PEERS = ("orthanc16", "orthanc128", "storescp")
FASTEST = "storescp-raw"
_WORKLOADS = ("ct", "cine", "small", "storescu", "each", "echo", "large")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line-up: what is sent, how many at once, to whom."""

    workload: str
    title: str
    associations: int
    count: int
    rounds: int
    templates: tuple[Template, ...] = ()
    manner: Manner = Manner.ONE
    storescu: Nagle | None = None  # how it runs, where it is the sender
    nagle: Nagle = Nagle.OFF  # how the servers run
    servers: tuple[str, ...] = (OURS, *PEERS)

    def shares(self) -> list[int]:
        """How many each sender sends."""
        least, more = divmod(self.count, self.associations)
        return [least + (sender < more) for sender in range(self.associations)]

    def orders(self, port: int) -> list[Order]:
        """The orders of one run, under names no other run has."""
        run = new_run()
        return [
            Order(
                port=port,
                names=Names(run, sender),
                count=count,
                manner=self.manner,
                templates=self.templates,
            )
            for sender, count in enumerate(self.shares())
        ]

    def sizes(self) -> list[list[int]]:
        """Bytes of each data set, by sender."""
        return [order.lengths() for order in self.orders(0)]


class Plan:
    """The cases to run, and their counts."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.rounds = self._number("ROUNDS", 5)
        self._associations = [int(one) for one in self._words("ASSOCIATIONS", ("1", "4", "8"))]
        self._servers = self._words("SERVERS", (OURS, *PEERS, FASTEST, LIMIT))
        self._workloads = self._words("WORKLOADS", _WORKLOADS)

    def _number(self, name: str, default: int) -> int:
        return int(self._environment.get(name) or default)

    def _words(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        given = self._environment.get(name)
        return tuple(given.split(",")) if given else default

    @property
    def crew(self) -> int:
        """How many senders are needed at once."""
        return max(4, *self._associations)

    def cases(self) -> Iterator[Case]:
        """Every case that is asked for, with the servers that are."""
        for case in (*self._stores(), *self._single(), self._large()):
            servers = tuple(one for one in case.servers if one in self._servers)
            if case.workload in self._workloads and servers:
                yield replace(case, servers=servers)

    def _stores(self) -> Iterator[Case]:
        """Storage over associations that stay open."""
        for workload, title, default, templates in (
            ("ct", "CT, 0.53 MB", 800, (instances.ct(),)),
            ("cine", "Ultrasound cine, 5.5 to 39.6 MB", 32, instances.cines()),
            ("small", "Small instances, 14 KB", 2000, (instances.small(),)),
        ):
            for associations in self._associations:
                yield Case(
                    workload=workload,
                    title=title,
                    associations=associations,
                    count=self._number(workload.upper(), default),
                    rounds=self.rounds,
                    templates=templates,
                    servers=(OURS, *PEERS, FASTEST, LIMIT),
                )

    def _single(self) -> Iterator[Case]:
        """Other senders, and one association for each thing done."""
        shipped = Case(
            workload="storescu",
            title="CT, by storescu; it and the servers as they are shipped",
            associations=1,
            count=self._number("STORESCU", 64),
            rounds=self.rounds,
            storescu=Nagle.AS_SHIPPED,
            nagle=Nagle.AS_SHIPPED,
        )
        helped = replace(
            shipped,
            title="CT, by storescu as it is shipped; the servers with TCP_NODELAY=1",
            nagle=Nagle.OFF,
        )
        quick = replace(
            helped,
            title="CT, by storescu; it and the servers with TCP_NODELAY=1",
            count=4 * shipped.count,
            storescu=Nagle.OFF,
        )
        each = replace(
            quick,
            workload="each",
            title="CT, one association an instance",
            count=self._number("EACH", 400),
            templates=(instances.ct(),),
            manner=Manner.EACH,
            storescu=None,
        )
        echo = replace(
            each,
            workload="echo",
            title="C-ECHO, one association each",
            count=self._number("ECHO", 1000),
            templates=(),
            manner=Manner.ECHO,
        )
        for case in (shipped, helped, quick, each, echo):
            yield case
            yield replace(case, associations=4)

    def _large(self) -> Case:
        mib = self._number("LARGE", 2048)
        return Case(
            workload="large",
            title=f"One multi-frame object of {mib:,} MiB",
            associations=1,
            count=1,
            rounds=1,
            templates=(instances.large(mib),),
            servers=(OURS,),
        )
