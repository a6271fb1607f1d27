"""Words for SYLLO puzzles: syllables and a definition each, in our own words.

Definitions hold no punctuation but hyphens, so that one reads the same in every form of a task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SylloWord:
    """One hidden word."""

    syllables: tuple[str, ...]
    definition: str

    @property
    def word(self) -> str:
        """Its syllables together, lower case."""
        return "".join(self.syllables)


_TEXT: Final = """
can-dle: a stick of wax with a wick that is burned for light
win-dow: an opening with glass that lets daylight into a room
gar-den: a piece of ground where flowers or vegetables are grown
pen-cil: a thin wooden tool for drawing in grey
rab-bit: a small animal with long ears that lives in burrows
mar-ket: a place where people meet to buy and sell
sum-mer: the warmest season of the year
win-ter: the coldest season of the year
doc-tor: a person trained to treat the sick
sil-ver: a shiny pale metal used for coins and spoons
bas-ket: a container woven from thin branches
pil-low: a soft cushion for the head of a sleeper
kit-chen: the room in which meals are cooked
but-ter: a yellow fat made by churning cream
pup-pet: a doll moved by strings or by a hand inside it
mag-net: a thing that pulls iron towards itself
tun-nel: a passage dug through a hill or under a river
rock-et: a vehicle that flies into space
jack-et: a short coat with sleeves
blan-ket: a warm cover for a bed
cir-cus: a travelling show with clowns and acrobats
hel-met: a hard hat that protects the head
pump-kin: a large round orange fruit carved in autumn
sand-wich: two slices of bread with something between them
tal-ent: a natural gift for doing something well
vel-vet: a cloth with a soft thick surface
wal-let: a flat case for banknotes and cards
zip-per: a fastener with two rows of small teeth
fa-ther: a male parent
mo-ther: a female parent
sis-ter: a girl who has the same parents
pa-per: thin sheets made from wood for writing on
ti-ger: a big striped cat of the jungle
spi-der: an animal with eight legs that spins webs
dra-gon: a beast of fairy tales that breathes fire
ro-bot: a machine that does tasks by itself
pi-lot: the person who flies an aircraft
mu-sic: sounds arranged to please the ear
plan-et: a large round body that circles a star
sha-dow: the dark shape behind something that blocks light
thun-der: the loud noise that follows lightning
har-bour: a sheltered place for ships
an-chor: a heavy hook that keeps a ship in place
cas-tle: a strong building with towers and thick walls
lan-tern: a lamp with a cover that can be carried
fea-ther: one of the light things that cover a bird
wea-ther: sun or rain or wind on a given day
oys-ter: a shellfish that may hold a pearl
car-pet: a thick woven covering for a floor
lad-der: two long bars with rungs for climbing
ham-mer: a tool for driving nails
mir-ror: a glass in which one sees oneself
nee-dle: a thin pointed tool for sewing
pock-et: a small bag sewn into clothes
sai-lor: a person who works on a ship
tea-cher: a person who helps others learn at school
bo-nus: something good given on top of what is due
cam-el: a desert animal with humps
dol-phin: a clever sea mammal that leaps
fal-con: a fast bird of prey
ba-na-na: a long curved yellow fruit
po-ta-to: a vegetable that grows under the ground and is made into chips
to-ma-to: a soft red fruit eaten in salads
um-brel-la: a folding roof carried in the rain
el-e-phant: the largest animal on land with a trunk
croc-o-dile: a large reptile with strong jaws that lives in rivers
com-pu-ter: a machine that follows programs to handle data
tel-e-phone: a device for speaking with people far away
hos-pi-tal: a building where the sick are cared for
li-bra-ry: a place where books are kept and lent
hol-i-day: a time of rest away from work
bi-cy-cle: a vehicle with two wheels moved by pedals
cam-er-a: a device that takes pictures
fac-to-ry: a building where goods are made by machines
gui-tar-ist: a person who plays an instrument with six strings
his-to-ry: the study of what happened in the past
mem-o-ry: the power to keep in mind what was learned
mys-te-ry: something that nobody can explain yet
vic-to-ry: the winning of a contest or war
gal-ax-y: a huge group of stars held together
vol-ca-no: a mountain that can throw out lava
tor-na-do: a violent wind that turns in a funnel
i-gua-na: a large green lizard of warm countries
go-ril-la: the largest of the apes
kan-ga-roo: an animal that hops and carries its young in a pouch
but-ter-fly: an insect with large coloured wings that was a caterpillar
drag-on-fly: a long thin insect with four clear wings found near water
cu-cum-ber: a long green vegetable sliced for salads
pine-ap-ple: a tropical fruit with a rough skin and a crown of leaves
choc-o-late: a brown sweet made from cocoa
mar-ga-rine: a spread made from plant oils
res-tau-rant: a place where meals are served for money
as-tro-naut: a person who travels in space
ar-chi-tect: a person who designs buildings
mu-si-cian: a person who plays an instrument
ma-gi-cian: a person who performs tricks that look impossible
car-pen-ter: a person who builds with wood
de-tec-tive: a person who solves crimes
in-ven-tor: a person who thinks up new machines
pas-sen-ger: a person who rides but does not drive
vol-un-teer: a person who works without pay by choice
cel-e-brate: to mark a happy day with a party
con-tin-ue: to go on without stopping
dis-cov-er: to find what was not known before
ex-am-ine: to look at something closely
im-ag-ine: to form a picture in the mind
re-mem-ber: to bring back to mind
un-der-stand: to grasp the meaning of something
dan-ger-ous: likely to do harm
del-i-cate: easily broken or hurt
en-or-mous: very very large
ex-pen-sive: costing a lot of money
fan-tas-tic: wonderful beyond belief
in-vis-i-ble: impossible to see
cat-er-pil-lar: a crawling creature that becomes a winged insect
hel-i-cop-ter: an aircraft lifted by turning blades
al-li-ga-tor: a reptile of swamps with a broad snout
av-o-ca-do: a green fruit with a large stone and soft flesh
wa-ter-mel-on: a large fruit with red juicy flesh and black seeds
cal-cu-la-tor: a small device that does sums
el-e-va-tor: a moving cabin between the floors of a building
es-ca-la-tor: stairs that move by themselves
ra-di-a-tor: a device filled with hot water that warms a room
ther-mom-e-ter: a tool that measures how warm it is
ba-rom-e-ter: a tool that measures the pressure of air
dic-tion-ar-y: a book that explains words in order of the alphabet
sec-re-tar-y: a person who writes letters and keeps files in an office
mul-ti-mil-lion-aire: a person who owns several great fortunes
pho-tog-ra-pher: a person who takes pictures for a living
phi-los-o-pher: a person who thinks about truth and life
as-tron-o-mer: a scientist who studies stars
bi-ol-o-gist: a scientist who studies living things
ge-ol-o-gist: a scientist who studies rocks
in-ter-pret-er: a person who translates speech as it is spoken
com-mu-ni-cate: to share thoughts or news with others
ex-ag-ger-ate: to make something sound bigger than it is
in-ves-ti-gate: to search for the facts of a case
par-tic-i-pate: to take part in something
con-grat-u-late: to tell someone how glad one is about their success
ap-pre-ci-ate: to be grateful for something
ac-cel-er-ate: to become faster
e-vap-o-rate: to turn from liquid into vapour
hi-ber-na-tion: the long sleep of animals in the cold months
ed-u-ca-tion: teaching and learning at school
cel-e-bra-tion: a joyful party for a special day
con-ver-sa-tion: a talk between people
com-bi-na-tion: several things joined into one
des-ti-na-tion: the place to which one travels
in-for-ma-tion: facts that tell something
op-er-a-tion: what a surgeon performs
pop-u-la-tion: all the people who live in a place
res-er-va-tion: a table or room kept for a guest
veg-e-ta-tion: all the plants of an area
tem-per-a-ture: how hot or cold something is
ag-ri-cul-ture: the work of growing crops and raising animals
ar-chi-tec-ture: the art of designing buildings
man-u-fac-ture: to make goods in large numbers
ad-ven-tur-ous: eager to try new and risky things
mys-te-ri-ous: hard to explain and full of secrets
in-dus-tri-al: to do with factories
ter-ri-to-ry: land that belongs to one ruler or animal
nec-es-sar-y: needed and not to be left out
or-di-nar-y: not special in any way
rev-o-lu-tion: the overthrow of a government by its people
ev-o-lu-tion: the slow change of living things over generations
in-sti-tu-tion: a large organisation such as a bank or a college
e-lec-tri-cian: a person who repairs wires and lamps
math-e-ma-ti-cian: a person who proves theorems
re-frig-er-a-tor: a cold cupboard for food
hip-po-pot-a-mus: a heavy animal that bathes in African rivers
u-ni-ver-si-ty: a place of higher learning that grants degrees
e-lec-tric-i-ty: the power that flows through wires
im-ag-i-na-tion: the power of forming pictures in the mind
in-ves-ti-ga-tion: a search for the facts of a case
com-mu-ni-ca-tion: the sharing of thoughts or news
ex-ag-ger-a-tion: a claim that is bigger than the truth
con-grat-u-la-tion: what one says to a winner
ap-pre-ci-a-tion: thankful recognition of what someone did
ac-cel-er-a-tion: the rate at which speed grows
e-vap-o-ra-tion: the turning of liquid into vapour
par-tic-i-pa-tion: the act of taking part
pro-nun-ci-a-tion: the way in which a word is spoken
or-gan-i-za-tion: a group of people with a common purpose
civ-i-li-za-tion: a society with cities and laws and writing
gen-er-os-i-ty: readiness to give to others
cu-ri-os-i-ty: the wish to know more
pos-si-bil-i-ty: something that may happen
vo-cab-u-lar-y: all the words a person knows
lab-o-ra-to-ry: a room for experiments
ob-ser-va-to-ry: a building with a telescope
au-to-mat-ic-al-ly: by itself and without anyone acting
en-thu-si-as-tic: full of eager interest
an-ni-ver-sa-ry: the yearly return of a special date
"""


def _parse(text: str) -> tuple[SylloWord, ...]:
    pairs = (line.split(": ", 1) for line in text.split("\n") if line)
    return tuple(SylloWord(tuple(syllables.split("-")), definition) for syllables, definition in pairs)


SYLLO_WORDS: Final[tuple[SylloWord, ...]] = _parse(_TEXT)
