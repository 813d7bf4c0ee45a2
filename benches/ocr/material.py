"""Words, sentences, goods and people for made-up pages, all drawn from one seeded source.

Only characters that PP-OCRv4's own list holds are used: it has ä, ü and é but neither ö, ß, Ä, Ö nor the euro sign, so the
pages are English with a few borrowed words.
"""

import random

NOUNS = """account afternoon agreement answer archive arrangement balance bakery basket bicycle boundary bridge building butter cabinet
calendar camera carpenter ceiling chapter church committee company compass copper corner council country cupboard customer danger
daughter decision delivery department desk detail distance doctor drawer election engine envelope evening evidence example exchange
family farmer ferry figure finger forest fortune foundation garden gentleman glass government grain hammer harbour history holiday
hospital household island journal journey judgement kettle kitchen knowledge ladder landlord language lantern lawyer letter library
licence machine manager market meadow measure member memory merchant message mirror moment morning mountain museum neighbour
newspaper notebook number office opinion orchard order owner paper parcel parliament passage pattern payment pencil people period
pharmacy picture pocket position postman pressure printer problem programme promise property quarter question railway reason receipt
record region remedy report request reservoir result river saddle sailor sample scholar school season secretary sentence service
shadow shelter shoulder signature silence sister society soldier spring square stable station storm story street student summer
supply surface surgeon table teacher telegram temper theatre thunder ticket timber tobacco tower traffic traveller treasure treaty
umbrella uncle valley vessel village vineyard violin visitor voyage wagon warehouse watch weather wedding weight whistle widow
window winter witness worker workshop writer yard""".split()
ADJECTIVES = """ancient annual awkward bitter blank brief bright broad careful cheap clever common complete curious deep delicate distant
dry early empty equal excellent exact faint false familiar final firm foreign former formal frequent friendly general gentle golden
grateful grave heavy hidden hollow honest huge humble idle important innocent joint keen large late liquid local lonely loose lower
major medical minor modern narrow natural neat nervous new noble obvious old ordinary painful pale patient perfect plain pleasant
polite popular private proper public quick quiet rapid rare ready recent remote rough royal safe second secret senior serious severe
sharp short silent simple single slender slow small smooth solid special steady steep strange sudden sufficient tall technical thick
thin tired usual various violent visible warm weak wealthy wide willing wooden young""".split()
VERBS = """accepted admired announced answered arranged asked avoided borrowed brought built called carried changed checked chose
cleaned closed collected compared considered copied counted covered crossed decided delivered described discovered divided drew
employed entered examined expected explained filled finished followed forgot found gathered guarded handled heard helped hid
imagined improved inspected joined kept knew learned left lifted liked lost measured mended met mixed moved named needed noticed
obtained offered opened ordered painted passed picked placed planned praised prepared preserved printed promised proved published
pulled pushed reached read received recognised recorded refused remembered repaired repeated replaced reported returned saved sealed
searched sent served settled shared signed sold sorted spoiled stopped studied supported surveyed taught tested thanked touched
translated trusted understood used visited wanted warned washed watched weighed wrote""".split()
ADVERBS = """again almost already always barely carefully certainly commonly directly early easily exactly finally gladly hardly
immediately lately merely nearly never often openly perhaps plainly probably quickly quietly rarely readily scarcely seldom simply
slowly sometimes soon suddenly therefore twice usually warmly willingly""".split()
PLACES = """Ashford Bergen Bristol Calais Dover Elmwood Florence Geneva Hamburg Ipswich Kendal Leiden Lisbon Malmesbury Norwich Oakham
Orford Perth Quebec Reading Salzburg Tilbury Utrecht Vienna Whitby Yarmouth Zagreb""".split()
FIRST = "Ada Albert Beatrice Charles Dora Edmund Flora George Harriet Isaac Julia Kenneth Louise Martin Nora Oliver Paula Quentin \
Ruth Simon Thomas Ursula Victor Wilma".split()
LAST = "Abbott Barker Carver Dawson Eliot Fletcher Garner Hawkins Irving Jenkins Keller Lambert Mercer Norton Osgood Parker Quigley \
Ramsey Sawyer Thatcher Underhill Vaughan Webster Young".split()
GOODS = """apples|bananas|bread rolls|brown sugar|butter salted|carrots 1kg|cheddar cheese|chicken breast|coffee beans|corn flakes|
cottage cheese|cucumber|dark chocolate|dish soap|eggs free range|espresso|flour 405|frozen peas|garlic|ginger tea|green salad|
ground beef|honey jar|ice cream|jam strawberry|ketchup|kitchen towel|lemonade 1.5L|light bulb E27|mineral water|mushrooms 250g|
mustard|oat milk|olive oil|onions 2kg|orange juice|paper bag|pasta fusilli|peanuts|pears|potatoes|rice basmati|rye bread|salmon fillet|
sparkling water|spinach|tomato soup|tomatoes|toothpaste|vanilla yogurt|vinegar|washing powder|white wine|whole milk 3.5%""".replace(
    "\n", "").split("|")
SERVICES = """Hosting, standard plan|Annual maintenance|Replacement of filter unit|Oak board 240 x 30 x 2 cm|Travel expenses, 140 km|
Consulting, senior engineer|Technical drawing A2|Network cable CAT6, 25 m|Paint, signal white, 10 L|Training day on site|
Delivery and packing|Translation per 1000 words|Laser printer, refurbished|Chair model B-17|Licence extension|Steel bracket M8|
Window cleaning, third floor|Printing of brochures|Rental of scaffold|Safety inspection""".replace("\n", "").split("|")


class Writer:
    """Draws text from a source of randomness."""

    def __init__(self, source: random.Random):
        self.random = source

    def person(self) -> str:
        return f"{self.random.choice(FIRST)} {self.random.choice(LAST)}"

    def number(self) -> str:
        draw = self.random
        kinds = [str(draw.randint(2, 99)), str(draw.randint(1780, 2024)), f"{draw.randint(1, 99)}.{draw.randint(0, 9)}",
                 f"{draw.randint(1, 48)},{draw.randint(100, 999)}", f"{draw.randint(2, 98)}%"]
        return draw.choice(kinds)

    def thing(self) -> str:
        draw = self.random
        article = draw.choice(["the", "the", "the", "this", "every", "another", "their", "his", "our", "no"])
        parts = [article]
        if draw.random() < 0.5:
            parts.append(draw.choice(ADJECTIVES))
        parts.append(draw.choice(NOUNS))
        if draw.random() < 0.22:
            parts += [draw.choice(["of", "from", "near", "behind", "with"]), draw.choice(["the", "a new", "an old", "its"]), draw.choice(NOUNS)]
        return " ".join(parts)

    def clause(self) -> str:
        draw = self.random
        who = draw.choice([self.thing, self.thing, lambda: f"Mr. {draw.choice(LAST)}", lambda: f"Mrs. {draw.choice(LAST)}",
                           lambda: draw.choice(["he", "she", "they", "we", "somebody", "I"]), self.person])()
        parts = [who]
        if draw.random() < 0.25:
            parts.append(draw.choice(ADVERBS))
        parts += [draw.choice(VERBS), self.thing()]
        tail = draw.random()
        if tail < 0.16:
            parts += ["in", draw.choice(PLACES)]
        elif tail < 0.26:
            parts += [draw.choice(["before", "after", "since", "until"]), self.number()]
        elif tail < 0.33:
            parts += ["for", self.number(), draw.choice(["days", "miles", "years", "pounds", "guests"])]
        return " ".join(parts)

    def sentence(self) -> str:
        draw, shape = self.random, self.random.random()
        if shape < 0.3:
            text = self.clause()
        elif shape < 0.5:
            text = f"{self.clause()}, {draw.choice(['and', 'but', 'so', 'for', 'while', 'although'])} {self.clause()}"
        elif shape < 0.62:
            text = f"{draw.choice(['when', 'because', 'if', 'as soon as', 'whenever'])} {self.clause()}, {self.clause()}"
        elif shape < 0.7:
            text = f"{self.clause()}; {self.clause()}"
        elif shape < 0.77:
            text = f"{self.clause()} ({draw.choice(['see', 'compare', 'about'])} page {draw.randint(2, 480)})"
        elif shape < 0.85:
            text = f'"{self.upper(self.clause())}," {draw.choice(["said", "wrote", "replied"])} {self.person()}'
        elif shape < 0.92:
            text = f"{self.clause()}: {draw.choice(ADJECTIVES)}, {draw.choice(ADJECTIVES)} and {draw.choice(ADJECTIVES)}"
        else:
            text = f"{self.clause()} - {self.clause()}"
        return self.upper(text) + draw.choice([".", ".", ".", ".", ".", ".", "?", "!"])

    @staticmethod
    def upper(text: str) -> str:
        return text[0].upper() + text[1:]

    def paragraph(self, sentences: int) -> str:
        return " ".join(self.sentence() for _ in range(sentences))

    def title(self) -> str:
        draw = self.random
        words = [draw.choice(ADJECTIVES), draw.choice(NOUNS), draw.choice(["of", "and", "in"]), "the", draw.choice(NOUNS)]
        text = " ".join(words)
        return draw.choice([text.title, text.upper, lambda: self.upper(text)])()

    def price(self, top: int = 90) -> float:
        return self.random.randint(0, top) + self.random.choice([0.09, 0.25, 0.49, 0.5, 0.79, 0.95, 0.99, 0.0])

    def date(self) -> str:
        draw = self.random
        day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1998, 2025)
        return draw.choice([f"{day:02}.{month:02}.{year}", f"{year}-{month:02}-{day:02}", f"{month:02}/{day:02}/{year}"])

    def street(self) -> str:
        return f"{self.random.randint(1, 280)} {self.upper(self.random.choice(NOUNS))} {self.random.choice(['Street', 'Road', 'Lane', 'Square'])}"

    def shop(self) -> str:
        return f"{self.upper(self.random.choice(ADJECTIVES))} {self.upper(self.random.choice(NOUNS))} {self.random.choice(['Ltd.', 'Market', '& Sons', 'Co.', 'Stores'])}"
