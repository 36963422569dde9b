"""Words of the demo grammar, English and German, with the words that they may be combined with.

Each table has one word per line; its first comment names the columns. `-` means "by rule" or
"none". Nouns of persons without `kin` also get the class `other`, and adults among them `grown`.
"""

from data_scripts.english_german.morphology import (
    Adjective,
    Noun,
    Verb,
    english_s,
    participle,
)

NOUN_TABLE = """
# English, English plural | gender, German, German plural | classes
# Gender `w`: masculine of the n-declension. Plural `0`: never counted. `kin`: with a possessive.
man men | m Mann Männer | person adult
woman women | f Frau Frauen | person adult
boy - | w Junge Jungen | person
girl - | n Mädchen Mädchen | person
child children | n Kind Kinder | person
friend - | m Freund Freunde | person own
neighbor - | w Nachbar Nachbarn | person adult own
colleague - | w Kollege Kollegen | person adult own
student - | w Student Studenten | person adult
policeman policemen | w Polizist Polizisten | person adult
baker - | m Bäcker Bäcker | person adult
teacher - | f Lehrerin Lehrerinnen | person adult own
doctor - | f Ärztin Ärztinnen | person adult own
engineer - | f Ingenieurin Ingenieurinnen | person adult
artist - | f Künstlerin Künstlerinnen | person adult
mother - | f Mutter 0 | person adult kin
father - | m Vater 0 | person adult kin
grandmother - | f Großmutter 0 | person adult kin
grandfather - | m Großvater 0 | person adult kin
brother - | m Bruder Brüder | person kin
sister - | f Schwester Schwestern | person kin
aunt - | f Tante Tanten | person adult kin
uncle - | m Onkel Onkel | person adult kin
son - | m Sohn Söhne | person kin
daughter - | f Tochter Töchter | person kin
dog - | m Hund Hunde | animal pet
cat - | f Katze Katzen | animal pet
bird - | m Vogel Vögel | animal bird
horse - | n Pferd Pferde | animal
rabbit - | n Kaninchen Kaninchen | animal pet
mouse mice | f Maus Mäuse | animal
cow - | f Kuh Kühe | animal
bear - | w Bär Bären | animal wild
monkey - | w Affe Affen | animal wild
elephant - | w Elefant Elefanten | animal wild
book - | n Buch Bücher | text written flat gift goods
newspaper - | f Zeitung Zeitungen | text flat goods
letter - | m Brief Briefe | text written flat mail
story stories | f Geschichte Geschichten | text written
poem - | n Gedicht Gedichte | text written
apple - | m Apfel Äpfel | food fruit goods gift
pear - | f Birne Birnen | food fruit goods gift
banana - | f Banane Bananen | food fruit goods
orange - | f Orange Orangen | food fruit goods gift
cake - | m Kuchen Kuchen | food fruit goods gift
egg - | n Ei Eier | food cooked goods
tomato tomatoes | f Tomate Tomaten | food goods
potato potatoes | f Kartoffel Kartoffeln | food cooked goods
carrot - | f Karotte Karotten | food cooked goods
soup - | f Suppe 0 | mass meal cooked
bread - | n Brot 0 | mass meal
rice - | m Reis 0 | mass meal cooked
meat - | n Fleisch 0 | mass meal cooked
cheese - | m Käse 0 | mass meal
water - | n Wasser 0 | mass drink
milk - | f Milch 0 | mass drink
tea - | m Tee 0 | mass drink
coffee - | m Kaffee 0 | mass drink
juice - | m Saft 0 | mass drink
coat - | m Mantel Mäntel | clothes goods
shirt - | n Hemd Hemden | clothes goods
jacket - | f Jacke Jacken | clothes goods
hat - | m Hut Hüte | clothes goods
cap - | f Mütze Mützen | clothes goods
glove - | m Handschuh Handschuhe | clothes goods
sweater - | m Pullover Pullover | clothes goods
table - | m Tisch Tische | furniture goods
chair - | m Stuhl Stühle | furniture goods
bed - | n Bett Betten | furniture goods
sofa - | n Sofa Sofas | furniture goods
cupboard - | m Schrank Schränke | furniture goods
clock - | f Uhr Uhren | machine goods small
lamp - | f Lampe Lampen | machine device goods
radio - | n Radio Radios | machine device goods
computer - | m Computer Computer | machine device goods
television - | m Fernseher Fernseher | machine device goods
key - | m Schlüssel Schlüssel | small flat
knife knives | n Messer Messer | small flat goods
bag - | f Tasche Taschen | small upright goods gift
cup - | f Tasse Tassen | small upright goods dish
plate - | m Teller Teller | small upright goods dish
bottle - | f Flasche Flaschen | small upright opened
umbrella - | m Regenschirm Regenschirme | small goods
suitcase - | m Koffer Koffer | small upright opened goods
ball - | m Ball Bälle | small toy goods gift
flower - | f Blume Blumen | gift goods plant bloom
picture - | n Bild Bilder | gift view flat goods
gift - | n Geschenk Geschenke | mail
window - | n Fenster Fenster | opened
door - | f Tür Türen | opened
car - | n Auto Autos | vehicle machine owned
bicycle - | n Fahrrad Fahrräder | vehicle machine owned
bus buses | m Bus Busse | vehicle line
train - | m Zug Züge | vehicle line
ship - | n Schiff Schiffe | vehicle line
house - | n Haus Häuser | place building
garden - | m Garten Gärten | place area
kitchen - | f Küche Küchen | place room
room - | n Zimmer Zimmer | place room
office - | n Büro Büros | place room
school - | f Schule Schulen | place building
museum - | n Museum Museen | place building sight
church churches | f Kirche Kirchen | place building sight
library libraries | f Bibliothek Bibliotheken | place building
hotel - | n Hotel Hotels | place building
bakery bakeries | f Bäckerei Bäckereien | place building
station - | m Bahnhof Bahnhöfe | place building
park - | m Park Parks | place area sight
forest - | m Wald Wälder | place area
lake - | m See Seen | place area
village - | n Dorf Dörfer | place area sight
city cities | f Stadt Städte | place area sight
market - | m Markt Märkte | place area
bridge - | f Brücke Brücken | place building
tree - | m Baum Bäume | plant
"""

ADJECTIVE_TABLE = """
# English | German, stem before an ending | kind | noun classes
# Kind `a` comes before kind `b` (colours) where a noun has two.
old - | alt - | a | adult pet text clothes furniture machine building vehicle view
young - | jung - | a | grown pet wild
big - | groß - | a | pet wild furniture building area room plant small
small - | klein - | a | pet bird furniture building area room plant toy
new - | neu - | a | clothes furniture machine vehicle small text
beautiful - | schön - | a | clothes furniture area building sight plant view
expensive - | teuer teur | a | clothes furniture machine owned
cheap - | billig - | a | clothes furniture machine
heavy - | schwer - | a | furniture upright
fast - | schnell - | a | vehicle
long - | lang - | a | written
short - | kurz - | a | written
interesting - | interessant - | a | text sight
funny - | lustig - | a | text person wild
friendly - | freundlich - | a | person pet
clever - | klug - | a | person pet
famous - | berühmt - | a | adult sight
happy - | glücklich - | a | person
tired - | müde müd | a | person pet
hungry - | hungrig - | a | person animal
quiet - | ruhig - | a | person area room
dirty - | schmutzig - | a | clothes owned dish
dark - | dunkel dunkl | a | room
bright - | hell - | a | room
fresh - | frisch - | a | food meal
sweet - | süß - | a | fruit
warm - | warm - | a | meal
cold - | kalt - | a | drink
hot - | heiß - | a | drink
red - | rot - | b | clothes bloom owned toy
blue - | blau - | b | clothes bloom owned toy
green - | grün - | b | clothes owned
white - | weiß - | b | clothes bloom pet furniture dish
black - | schwarz - | b | clothes pet furniture
brown - | braun - | b | animal furniture
"""

VERB_TABLE = """
# English, past | German, `du` and `er` form, participle, auxiliary | subject | slots | flags
# `+` parts the English particle and the German separable prefix. A slot is CASE:CLASSES or
# PREPOSITION/CASE:CLASSES or a place; `?` may be left out. Flags: s stative (no -ing),
# p present only, t past only beside a time adverbial, c takes the time of day, d no present,
# e no habit, n not willed (no modals), f no future.
read read | lesen liest liest gelesen h | person | A:text ?at:calm | t
write wrote | schreiben - - geschrieben h | person | A:written ?at:calm |
buy bought | kaufen - - - h | person | A:goods,owned |
sell sold | verkaufen - - - h | adult | A:goods | e
eat ate | essen isst isst gegessen h | person | A:food,meal ?at:calm |
drink drank | trinken - - getrunken h | person | A:drink ?at:calm |
cook cooked | kochen - - - h | adult | A:cooked |
see saw | sehen siehst sieht gesehen h | person | A:person,animal,vehicle,sight | s
find found | finden - - gefunden h | person | A:small | d
look_for looked | suchen - - - h | person | A:small,person |
need needed | brauchen - - - h | person | A:small,machine,clothes | s
have had | haben hast hat - h | person | A:pet,owned,machine,clothes | sp
love loved | lieben - - - h | person | A:pet,kin | sp
know knew | kennen - - - h | person | A:person,sight,text | sp
lose lost | verlieren - - verloren h | person | A:small | dnf
forget forgot | vergessen vergisst vergisst vergessen h | person | A:small | s
wash washed | waschen wäschst wäscht gewaschen h | person | A:clothes,dish,owned |
repair repaired | reparieren - - - h | adult | A:machine,furniture | e
wear wore | tragen trägst trägt getragen h | person | A:clothes |
draw drew | zeichnen - - - h | person | A:animal,plant,sight | e
visit visited | besuchen - - - h | person | A:person,sight |
ask asked | fragen - - - h | person | A:person |
open opened | auf+machen - - - h | person | A:opened |
close closed | zu+machen - - - h | person | A:opened |
turn+on turned | ein+schalten - - - h | person | A:device |
turn+off turned | aus+schalten - - - h | person | A:device |
pick+up picked | ab+holen - - - h | adult | A:person |
call called | an+rufen - - angerufen h | person | A:person |
invite invited | ein+laden lädst lädt eingeladen h | person | A:person | e
tidy+up tidied | auf+räumen - - - h | person | A:room |
take+along took | mit+nehmen nimmst nimmt mitgenommen h | person | A:small,flat |
try+on tried | an+probieren - - - h | person | A:clothes | e
look_at looked | an+sehen siehst sieht angesehen h | person | A:view,plant,animal |
put put | legen - - - h | person | A:flat to:surface | t
put put | stellen - - - h | person | A:upright to:surface | t
help helped | helfen hilfst hilft geholfen h | person | D:person |
thank thanked | danken - - - h | person | D:person |
answer answered | antworten - - - h | person | D:person |
listen_to listened | zu+hören - - - h | person | D:person |
belong_to belonged | gehören - - - h | owned small clothes | D:person | sp
give gave | geben gibst gibt gegeben h | person | D:person A:gift |
show showed | zeigen - - - h | person | D:person A:view,sight,text,clothes |
send sent | schicken - - - h | person | D:person A:mail |
lend lent | leihen - - geliehen h | person | D:person A:small,owned | e
bring brought | bringen - - gebracht h | person | D:person A:gift,mail,dish |
wait waited | warten - - - h | person | for=auf/A:person,line ?at:meeting |
think thought | denken - - gedacht h | person | of=an/A:person |
speak spoke | sprechen sprichst spricht gesprochen h | person | with=mit/D:person ?at:meeting |
dream dreamed | träumen - - - h | person | of=von/D:animal,sight,owned | n
play played | spielen - - - h | person | with=mit/D:pet,toy ?at:calm |
live lived | wohnen - - - h | person | at:home | s
work worked | arbeiten - - - h | adult | at:job |
sleep slept | schlafen schläfst schläft geschlafen h | pet | at:corner |
sit sat | sitzen - - gesessen h | pet | at:corner |
lie lay | liegen - - gelegen h | flat | at:surface | enf
stand stood | stehen - - gestanden h | person | at:meeting |
sing sang | singen - - gesungen h | person | at:calm |
dance danced | tanzen - - - h | person | at:calm |
laugh laughed | lachen - - - h | person | |
watch_TV watched | fern+sehen siehst sieht ferngesehen h | person | |
swim swam | schwimmen - - geschwommen s | person wild | at:water |
go went | gehen - - gegangen s | person | to:goal | c
come came | kommen - - gekommen s | person | to:goal | c
run ran | laufen läufst läuft gelaufen s | person animal | to:path |
fly flew | fliegen - - geflogen s | bird | to:path |
get+up got | auf+stehen - - aufgestanden s | person | | c
fall+asleep fell | ein+schlafen schläfst schläft eingeschlafen s | person pet | | cn
arrive arrived | an+kommen - - angekommen s | person line | | cn
depart departed | ab+fahren fährst fährt abgefahren s | line | | cn
"""

PLACE_TABLE = """
# place class | English preposition, German one | nouns
calm | in in | garden park kitchen library room
calm | at an | lake window
job | in in | office school museum library hotel bakery kitchen city
home | in in | house city village hotel
home | next_to neben | church station school park bakery
home | at an | lake
meeting | in_front_of vor | museum school hotel church library bakery
meeting | behind hinter | church house school
meeting | at an | station lake door
corner | under unter | table bed chair tree
corner | on auf | sofa bed chair
corner | behind hinter | door cupboard house
corner | in in | garden kitchen
surface | on auf | table chair sofa bed
surface | under unter | table bed chair
surface | next_to neben | lamp television radio plate
surface | in in | cupboard suitcase
water | in in | lake
goal | into in | house garden kitchen museum forest city park office
goal | to zu | station church market lake school library bakery bridge
path | through durch | garden park forest village
path | around um | house tree lake table
"""

TIME_TABLE = """
# kind | English | German
habit | every day | jeden Tag
habit | every morning | jeden Morgen
habit | every evening | jeden Abend
habit | every Sunday | jeden Sonntag
habit | every week | jede Woche
habit | in the morning | am Morgen
habit | in the evening | am Abend
now | now | jetzt
now | today | heute
past | yesterday | gestern
past | last week | letzte Woche
past | on Monday | am Montag
past | on Friday | am Freitag
coming | tomorrow | morgen
coming | next week | nächste Woche
coming | this evening | heute Abend
coming | on Saturday | am Samstag
"""

MODALS = {
    "can": "können",
    "must": "müssen",
    "should": "sollten",
    "want to": "wollen",
    "would like to": "möchten",
}


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.strip().splitlines() if not line.startswith("#")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def _noun(english: str, german: str, classes: str) -> Noun:
    en, en_plural = english.split()
    gender, de, plural = german.split()
    words = classes.split()
    if "person" in words and "kin" not in words:
        words += ["other", "grown"] if "adult" in words else ["other"]
    return Noun(
        en=en,
        en_plural=english_s(en) if en_plural == "-" else en_plural,
        de=de,
        gender="m" if gender == "w" else gender,
        plural="" if plural == "0" else plural,
        weak=gender == "w",
        classes=tuple(words),
    )


def _adjective(english: str, german: str, kind: str, classes: str) -> Adjective:
    de, stem = german.split()
    stem = de if stem == "-" else stem
    return Adjective(english.split()[0], de, stem, kind == "b", tuple(classes.split()))


def make_verb(english: str, german: str, subjects: str, slots: str, flags: str) -> Verb:
    """Verb from one row of the table."""
    phrase, past = english.split()
    phrase, _, particle = phrase.partition("+")
    en, _, preposition = phrase.partition("_")
    infinitive, du, er, perfect, auxiliary = german.split()
    prefix, _, stem = infinitive.rpartition("+")
    return Verb(
        en=en,
        particle=particle,
        preposition=preposition,
        en_past=past,
        infinitive=stem,
        prefix=prefix,
        du="" if du == "-" else du,
        er="" if er == "-" else er,
        participle=participle(stem, prefix) if perfect == "-" else perfect,
        auxiliary="haben" if auxiliary == "h" else "sein",
        subjects=tuple(subjects.split()),
        slots=tuple(slots.split()),
        flags=flags,
    )


NOUNS = [_noun(*row) for row in _rows(NOUN_TABLE)]
NOUN = {noun.en: noun for noun in NOUNS}
ADJECTIVES = [_adjective(*row) for row in _rows(ADJECTIVE_TABLE)]
VERBS = [make_verb(*row) for row in _rows(VERB_TABLE)]
PLACES = [
    (kind, english.replace("_", " "), german, nouns.split())
    for kind, prepositions, nouns in _rows(PLACE_TABLE)
    for english, german in [prepositions.split()]
]
TIMES = [(kind, english, german) for kind, english, german in _rows(TIME_TABLE)]
NAMES = {"Anna": "f", "Lena": "f", "Maria": "f", "Jonas": "m", "Paul": "m", "Peter": "m"}
FRAMES = {
    english.split()[0]: make_verb(english, german, "person", "", "s")
    for english, german in [
        ("know knew", "wissen - - gewusst h"),
        ("say said", "sagen - - - h"),
        ("hope hoped", "hoffen - - - h"),
        ("believe believed", "glauben - - - h"),
        ("ask asked", "fragen - - - h"),
        ("try tried", "versuchen - - - h"),
        ("cost cost", "kosten - - - h"),
    ]
}
