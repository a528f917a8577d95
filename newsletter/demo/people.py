"""Two thousand people who do not exist: names of many countries, addresses at domains that nobody can own."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from newsletter.demo.personas import PERSONAS, Persona

WEEKS = 52


@dataclass(frozen=True)
class Country:
    """A country's share of the list, its names and where its people have their mail."""

    share: float
    language: str
    time_zone: str
    towns: str
    given: str
    family: str
    domains: str
    comes_family_first: bool = False


# Names are `Name` or `Name=spelling` where the address needs Latin letters; lists are separated by blanks.
COUNTRIES: tuple[Country, ...] = (
    Country(
        0.30, "en", "Europe/London", "Leeds Bristol Totnes Glasgow Hathersley Norwich Cardiff York",
        "Margaret Alice Priya Tom Eleanor Hugh Beth Rosalind Callum Joan Desmond Imogen Fergus Nadia Peter Gwen Asha",
        "Okafor Whitlock Patel Marlow Penrose Hughes Carmichael Dunn Fairweather Singh Thorne Bellamy Ashby Greaves",
        "northmail.example inbox.example brightpost.example example.com allotment.example",
    ),
    Country(
        0.14, "en", "America/New_York", "Ithaca Portland Asheville Madison Burlington Savannah",
        "Hannah Marcus Denise Caleb Ruth Javier Lorraine Walter Naomi Theo Grace Curtis June Miles",
        "Abernathy Castillo Freeman Goldberg Hollis Jefferson Kowalski Mendoza Nguyen Pruitt Sandoval Weaver Young",
        "northmail.example inbox.example mailbarn.example example.net",
    ),
    Country(
        0.12, "de", "Europe/Berlin", "Göttingen Freiburg Leipzig Kiel Graz Basel",
        "Birgit Jürgen Anke Matthias Ulrike Søren Käthe Dieter Lena Friedrich Heike Jonas Sabine Götz",
        "Brandt Weiß Müller Schäfer Krüger Baumgartner Lindner Vogel Hölzl Zimmermann Kästner Engel Moser Rüegg",
        "postfach.example briefkasten.example gärten.example example.org",
    ),
    Country(
        0.08, "fr", "Europe/Paris", "Lyon Nantes Rennes Bruxelles Lausanne",
        "Amélie Étienne Chloé Benoît Geneviève Luc Maëlle Thierry Odile Rémi Solène Yves",
        "Lefèvre Moreau Dubois Garçon Rousseau Picard Fontaine Marchand Delacroix Berthier Noël Aubry",
        "courriel.example boite.example inbox.example",
    ),
    Country(
        0.06, "es", "Europe/Madrid", "Sevilla Gijón Valencia Oaxaca Rosario",
        "Lucía Álvaro Carmen Íñigo Pilar Joaquín Marisol Ramón Inés Nicolás Ximena Tomás",
        "Muñoz Herrera Ibáñez Vázquez Ortega Peña Salcedo Quiroga Domínguez Figueroa",
        "correo.example buzon.example northmail.example",
    ),
    Country(
        0.05, "pt", "Europe/Lisbon", "Porto Coimbra Recife Curitiba",
        "João Beatriz Conceição Rui Inês Tiago Fátima Gonçalo Luísa Caetano",
        "Carvalho Fonseca Magalhães Teixeira Araújo Simões Guimarães Lourenço",
        "correio.example inbox.example",
    ),
    Country(
        0.05, "it", "Europe/Rome", "Bologna Lucca Torino Palermo",
        "Chiara Matteo Giulia Lorenzo Ornella Niccolò Beatrice Ettore Franca Davide",
        "Ricci Bianchi Ferraro Colombo Galli Moretti Pellegrini Santoro",
        "posta.example northmail.example",
    ),
    Country(
        0.05, "sv", "Europe/Stockholm", "Malmö Uppsala Aarhus Bergen",
        "Åsa Björn Ingrid Lars Maja Øyvind Sigrid Håkan Freja Nils",
        "Lindqvist Åkesson Bergström Nygård Dahl Sørensen Holm Ekström",
        "brev.example inbox.example",
    ),
    Country(
        0.04, "ja", "Asia/Tokyo", "札幌 金沢 京都 長崎 仙台",
        "陽子=yoko 健太=kenta 美咲=misaki 浩=hiroshi 千尋=chihiro 直樹=naoki 文=aya 誠=makoto 恵子=keiko 蓮=ren",
        "佐藤=sato 鈴木=suzuki 高橋=takahashi 田中=tanaka 渡辺=watanabe 山本=yamamoto 小林=kobayashi 森=mori",
        "yubin.example tegami.example example.com", comes_family_first=True,
    ),
    Country(
        0.04, "pl", "Europe/Warsaw", "Kraków Gdańsk Brno Łódź",
        "Agnieszka Łukasz Zofia Paweł Małgorzata Wojciech Kasia Stanisław",
        "Wiśniewska Kamiński Zielińska Szymański Dąbrowska Jabłoński Novák Dvořák",
        "poczta.example inbox.example",
    ),
    Country(
        0.04, "en", "Asia/Kolkata", "Pune Kochi Bengaluru Shillong",
        "Anjali Vikram Meera Rohan Lakshmi Arjun Kavita Farhan Divya Sanjay",
        "Iyer Deshpande Banerjee Nair Kulkarni Chatterjee Menon Rao Khan Fernandes",
        "dak.example northmail.example",
    ),
    Country(
        0.03, "en", "Africa/Lagos", "Lagos Accra Nairobi Ibadan",
        "Chidinma Kofi Amara Tunde Wanjiru Emeka Abena Segun",
        "Adeyemi Mensah Eze Otieno Balogun Asante Njoroge Okonkwo",
        "inbox.example northmail.example",
    ),
)  # fmt: skip
OFFICES = (
    "hathersley-council.example", "stbrides-hospital.example", "okafor-partners.example",
    "nordbank.example", "delta-universiteit.example", "lindner-optik.example",
)  # fmt: skip
PLOTS = ("balcony", "allotment", "garden", "windowsill", "orchard", "courtyard")
_LATIN = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae"})


@dataclass
class Person:
    """Somebody of the demo, with the course of their year. Weeks count issues: 0 is the oldest."""

    place: int
    name: str
    email: str
    language: str
    time_zone: str
    attributes: dict[str, str]
    persona: Persona
    joined: int  # the first issue they got; negative for those who were there before
    consent: str = "full"
    is_protected: bool = False
    is_pending: bool = False
    unsubscribes: int | None = None  # with this issue
    bounces: int | None = None
    complains: int | None = None
    drifts: int | None = None  # no longer reads from this issue on
    pauses: range = field(default_factory=lambda: range(0))
    tags: tuple[str, ...] = ()

    @property
    def leaves(self) -> int:
        """The last issue that is sent to them."""
        ends = [end for end in (self.unsubscribes, self.bounces, self.complains) if end is not None]
        return min(ends, default=WEEKS)

    def receives(self, issue: int) -> bool:
        return not self.is_pending and self.joined <= issue <= self.leaves


def people(count: int, *, seed: int) -> list[Person]:
    """The same people for the same seed, whatever the day."""
    random = Random(seed)  # noqa: S311  a story, no secret
    taken: set[str] = set()
    personas = list(_personas(count))
    random.shuffle(personas)
    return [_person(random, place, persona, taken) for place, persona in enumerate(personas)]


def _personas(count: int) -> Iterator[Persona]:
    """Each persona as often as its share says; what rounding leaves goes to the first."""
    shares = [(persona, round(persona.share * count)) for persona in PERSONAS]
    for persona, times in shares:
        yield from [persona] * times
    yield from [PERSONAS[0]] * (count - sum(times for _persona, times in shares))


def _person(random: Random, place: int, persona: Persona, taken: set[str]) -> Person:
    country = random.choices(COUNTRIES, [each.share for each in COUNTRIES])[0]
    given, spelled_given = _name(random.choice(country.given.split()))
    family, spelled_family = _name(random.choice(country.family.split()))
    name = f"{family} {given}" if country.comes_family_first else f"{given} {family}"
    domain = random.choice(OFFICES) if persona.scans else random.choice(country.domains.split())
    person = Person(
        place=place,
        # Some only ever gave an address, so that a greeting's default is seen at work.
        name="" if random.random() < 0.06 else name,
        email=_address(random, spelled_given, spelled_family, domain, taken),
        language=country.language,
        time_zone=country.time_zone,
        attributes={"town": random.choice(country.towns.split()), "plot": random.choice(PLOTS)},
        persona=persona,
        joined=_joins(random, persona),
    )
    _give_fate(random, person)
    return person


def _name(entry: str) -> tuple[str, str]:
    name, _equals, spelled = entry.partition("=")
    plain = unicodedata.normalize("NFKD", (spelled or name).translate(_LATIN))
    return name, "".join(letter for letter in plain if letter.isascii() and letter.isalpha()).lower()


def _address(random: Random, given: str, family: str, domain: str, taken: set[str]) -> str:
    forms = (
        f"{given}.{family}",
        f"{given[0]}.{family}",
        f"{given}{family[0]}",
        f"{family}.{given}",
        f"{given}_{family}",
    )
    local = random.choice(forms)
    while f"{local}@{domain}" in taken:
        local = f"{random.choice(forms)}{random.randint(2, 99)}"
    taken.add(f"{local}@{domain}")
    return f"{local}@{domain}"


def _joins(random: Random, persona: Persona) -> int:
    if persona.is_new:
        return random.randint(WEEKS - 6, WEEKS - 1)
    if persona.drifts or random.random() < 0.68:
        return -random.randint(1, 110)
    return random.randint(0, WEEKS - 7)


def _give_fate(random: Random, person: Person) -> None:
    """What happens to somebody in the year; most people just read."""
    first = max(person.joined, 0)
    if person.persona.drifts:
        # Some left long ago, some only lately, whom nobody should judge yet.
        person.drifts = round(random.triangular(4, WEEKS - 4, WEEKS - 10))
    if not person.persona.is_new and random.random() < 0.35:
        start = random.randint(first, WEEKS)
        person.pauses = range(start, start + random.randint(3, 9))
    chance = random.random()
    issue = random.randint(first, WEEKS - 1)
    if chance < 0.045:
        person.unsubscribes = issue
    elif chance < 0.065:
        person.bounces = issue
    elif chance < 0.0665:
        person.complains = issue
    elif person.persona.is_new and chance > 0.85:
        person.is_pending = True
    person.consent = random.choices(("full", "hygiene", "none"), (0.945, 0.02, 0.035))[0]
    person.is_protected = person.place % 401 == 7
    person.tags = tuple(
        tag for tag, tagged in (("founder", person.joined < -90), ("seed swap", random.random() < 0.12)) if tagged
    )
