"""What the demo says: spoken commands of 24 intents, and free sentences that share their words but not their
form.

Commands are requests; free sentences tell of somebody, somewhere, in the past or in general. No free sentence
holds a command within. Each intent has phrasings for training, for choosing settings (dev) and for the final
test, so that a probe is judged on phrasings which it has not seen.
"""

from __future__ import annotations

import itertools
import random
import re

# intent -> (training phrasings, dev phrasings, test phrasings)
INTENTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "light_on": (
        ["turn on the lights in the {room}", "switch the {room} lamp on", "i need more light in the {room}",
         "make the {room} bright", "lights on in the {room} please"],
        ["it is too dark in the {room}", "put the lamp on in the {room}"],
        ["i can not see anything in the {room}", "give me a bright {room}", "turn the {room} lamp on please"],
    ),
    "light_off": (
        ["turn off the lights in the {room}", "switch the {room} lamp off", "make the {room} dark",
         "lights off in the {room} please", "no more light in the {room}"],
        ["it is too bright in the {room}", "put the lamp off in the {room}"],
        ["i want the {room} to be dark", "turn the {room} lamp off please", "the {room} is much too bright"],
    ),
    "heat_up": (
        ["turn up the heat in the {room}", "make the {room} warm", "i am cold in the {room}",
         "we need more heat in the {room}", "please heat the {room}"],
        ["the {room} is too cold", "make it hot in the {room}"],
        ["it is freezing in the {room}", "i want a warm {room}", "raise the heat in the {room}"],
    ),
    "heat_down": (
        ["turn down the heat in the {room}", "make the {room} cool", "i am too hot in the {room}",
         "we need less heat in the {room}", "please cool the {room}"],
        ["the {room} is too warm", "make it cold in the {room}"],
        ["it is much too hot in the {room}", "i want a cool {room}", "lower the heat in the {room}"],
    ),
    "louder": (
        ["turn up the sound", "make the {player} louder", "i can not hear the {player}",
          "raise the volume please",
         "the {player} is too quiet"],
        ["more volume on the {player}", "i want a loud {player}"],
        ["speak louder please", "increase the volume of the {player}", "turn the {player} up"],
    ),
    "quieter": (
        ["turn down the sound", "make the {player} quiet", "the {player} hurts my ears",
         "lower the volume please", "the {player} is too loud"],
        ["less volume on the {player}", "i want a quiet {player}"],
        ["speak softly please", "reduce the volume of the {player}", "turn the {player} down"],
    ),
    "play_music": (
        ["play some {genre} music", "i want to hear a {genre} song", "put on a {genre} record",
         "start the {genre} music", "let me listen to {genre} songs"],
        ["sing me a {genre} song", "i would like some {genre} music"],
        ["play me a {genre} tune", "find a good {genre} song", "we want to dance to {genre} music"],
    ),
    "stop_music": (
        ["stop the {genre} music", "i do not want to hear this song", "end the {genre} record",
         "no more {genre} songs", "pause the music please"],
        ["do not play {genre} music", "stop this {genre} song"],
        ["silence the {genre} music", "finish this song now", "i am tired of the {genre} music"],
    ),
    "weather": (
        ["what is the weather in {city}", "will it rain in {city} {day}", "is there snow in {city}",
         "how cold will it be in {city}", "tell me if the sun shines in {city}"],
        ["how is the weather {day}", "do i need an umbrella in {city}"],
        ["will there be wind in {city}", "is {city} sunny {day}", "should i expect a storm {day}"],
    ),
    "clock": (
        ["what time is it", "what time is it in {city}", "tell me the hour", "how late is it in {city}",
         "read me the clock please"],
        ["do you know the time in {city}", "what does the clock say"],
        ["what is the hour in {city}", "please tell me the time", "is it late already"],
    ),
    "alarm_set": (
        ["wake me at {hour}", "set an alarm for {hour}", "i must get up at {hour}",
          "let the bell ring at {hour}",
         "set the alarm for {hour} {day}"],
        ["i want to wake up at {hour}", "put an alarm at {hour}"],
        ["do not let me sleep past {hour}", "get me out of bed at {hour}", "i need an alarm at {hour}"],
    ),
    "alarm_cancel": (
        ["cancel my alarm for {hour}", "do not wake me {day}", "let me sleep {day}",
         "remove the alarm at {hour}", "no alarm {day} please"],
        ["i do not need an alarm {day}", "stop the bell at {hour}"],
        ["delete the alarm for {hour}", "i want to sleep late {day}", "do not ring the bell at {hour}"],
    ),
    "call": (
        ["call {person} now", "phone {person} please", "i want to speak with {person}",
         "start a phone call to {person}", "let me talk to {person}"],
        ["ring up {person} for me", "i must talk with {person}"],
        ["get {person} on the phone", "dial the number of {person}", "can you call {person}"],
    ),
    "message": (
        ["send a message to {person}", "write a letter to {person}", "send {person} a note",
         "write to {person} that i am late", "mail this to {person}"],
        ["let {person} read my message", "write {person} a message"],
        ["tell {person} in a letter that i am late", "send this note to {person}",
          "i want to write to {person}"],
    ),
    "order_food": (
        ["order {food} for {count}", "i am hungry for {food}", "bring me some {food}",
          "get us {food} for dinner",
         "i would like to eat {food}"],
        ["we want {food} for lunch", "order us some {food}"],
        ["can i have {food} for dinner", "let us eat {food}", "i feel like {food}"],
    ),
    "restaurant": (
        ["find a restaurant in {city}", "where can we eat in {city}", "book a table in {city} for {count}",
         "is there a good cafe in {city}", "find us a table for {count}"],
        ["where is a good restaurant", "we want a table for {count} {day}"],
        ["which restaurant is near {city}", "reserve a table for {count}", "where do people eat in {city}"],
    ),
    "taxi": (
        ["call a taxi to the {place}", "i need a car to the {place}", "get me a ride to the {place}",
         "send a driver to the {place}", "book a cab for {count}"],
        ["order a taxi for {count}", "i want a ride to the {place}"],
        ["can a driver take me to the {place}", "i need a taxi {day}", "get us a cab to the {place}"],
    ),
    "route": (
        ["show me the way to the {place}", "how do i get to the {place}", "which road goes to the {place}",
         "lead me to the {place}", "where is the {place}"],
        ["find the road to the {place}", "how far is the {place}"],
        ["guide me to the {place}", "what is the best way to the {place}",
          "which street leads to the {place}"],
    ),
    "door_open": (
        ["open the {door}", "please open the {door} for {person}", "let {person} in", "unlock the {door}",
         "i want the {door} open"],
        ["let the {door} be open", "open up the {door}"],
        ["let me in through the {door}", "can you open the {door}", "leave the {door} open"],
    ),
    "door_lock": (
        ["close the {door}", "please shut the {door}", "keep {person} out", "lock the {door}",
         "i want the {door} closed"],
        ["let the {door} be locked", "shut up the {door}"],
        ["let nobody in through the {door}", "can you close the {door}", "leave the {door} locked"],
    ),
    "news": (
        ["read me the news", "what happened in {city} {day}", "tell me the news from {city}",
         "what is new in the world", "open the morning paper"],
        ["any news from {city}", "what does the paper say"],
        ["what is going on in {city}", "read the paper to me", "give me the world news"],
    ),
    "list_add": (
        ["add {food} to my list", "we need to buy {food}", "put {food} on the list", "remember to buy {food}",
         "write {food} on my list"],
        ["we have no more {food}", "add some {food} to the list"],
        ["i must buy {food} {day}", "the {food} is all gone", "note that we need {food}"],
    ),
    "list_remove": (
        ["remove {food} from my list", "we do not need {food}", "take {food} off the list",
         "forget the {food}", "do not buy {food}"],
        ["we have enough {food}", "delete {food} from the list"],
        ["there is enough {food} at home", "cross {food} off my list", "nobody needs to buy {food}"],
    ),
    "joke": (
        ["tell me a joke", "make me laugh", "say something funny about {animal}",
         "do you know a joke about {animal}", "tell us a funny story"],
        ["i want to hear a joke", "be funny please"],
        ["tell {person} something funny", "i need a good laugh", "any jokes about {animal}"],
    ),
}  # fmt: skip

SLOTS: dict[str, list[str]] = {
    "room": ["kitchen", "bedroom", "garden", "office", "hall", "bathroom", "garage", "cellar"],
    "player": ["radio", "music", "television", "song", "speaker"],
    "genre": ["jazz", "rock", "piano", "summer", "country", "guitar"],
    "city": ["london", "paris", "boston", "berlin", "chicago", "madrid"],
    "day": ["today", "tomorrow", "on monday", "on sunday", "on friday", "tonight"],
    "hour": ["five", "six", "seven", "eight", "nine", "ten"],
    "person": ["my mother", "peter", "my brother", "susan", "the doctor", "my uncle", "anna", "the teacher"],
    "food": ["pizza", "bread", "milk", "soup", "apples", "coffee", "cheese", "chicken"],
    "count": ["two", "three", "four", "six"],
    "place": ["station", "airport", "hospital", "market", "museum", "school", "beach", "river"],
    "door": ["front door", "window", "garage door", "gate", "cellar window"],
    "animal": ["dogs", "cats", "horses", "birds"],
}

_FREE: list[str] = [
    "the {adjective} {folk} {carried} the {thing} to the {spot}",
    "{folk_the} {saw} {adjective} {animal} near the {spot}",
    "{folk_the} {carried} {count} {things} {past}",
    "there was a {adjective} {thing} in the {room}",
    "the {thing} in the {spot} was {adjective} {past}",
    "{folk_the} liked {food} and {food} for {meal}",
    "{folk_the} bought some {food} at the market {past}",
    "{folk_the} heard {genre} music from the {room}",
    "the {player} was {adjective} and {folk_the} was tired",
    "{folk_the} {moved} from {city} to {city} {past}",
    "{folk_the} {moved} past the {spot} with {animal}",
    "in {city} the weather was {weather} and {weather}",
    "the {sky} over {city} lasted {count} days",
    "{folk_the} wrote a {adjective} letter about {city}",
    "{folk_the} read the paper at {hour} in the {room}",
    "{folk_the} laughed about the {adjective} {thing}",
    "{folk_the} slept in the {room} until {hour}",
    "the bell at the {spot} rang at {hour}",
    "{folk_the} was {weather} and hungry after the long ride",
    "{folk_the} told {folk_the} a funny story about {animal}",
    "the clock in the {room} was {count} hours late",
    "{folk_the} left the {door} open {past}",
    "the {door} of the {spot} was closed {past}",
    "{folk_the} locked the {door} and {moved} home",
    "every {season} {folk_the} sold {things} near {city}",
    "{count} {adjective} {things} lay on the table",
    "{folk_the} lost the list with {food} and {food}",
    "the way to the {spot} was {adjective} in {season}",
    "{folk_the} paid the driver of the taxi {past}",
    "the road from {city} was {adjective} and dark",
    "the heat of the {season} made {folk_the} tired",
    "{folk_the} sang a {adjective} song in the {spot}",
    "the light of the lamp fell on the {adjective} {thing}",
    "{folk_the} waited for a call from {city}",
    "the restaurant near the {spot} served {food} {past}",
    "{folk_the} forgot the alarm and came late",
    "the sound of the {player} filled the {room}",
    "{folk_the} thought the volume of the {player} was {adjective}",
    "{folk_the} sent a message to {folk_the} {past}",
    "the news from {city} was {adjective} {past}",
    "people in {city} eat {food} in {season}",
    "{folk_the} turned the {thing} and switched {things}",
    "nobody knew the joke about the {adjective} {folk}",
    "{folk_the} played the guitar until the rain stopped",
    "{folk_the} took an umbrella because of the {sky}",
    "{folk_the} ordered {food} and talked with {folk_the}",
    "the phone of {folk_the} lay in the {room}",
    "{folk_the} added {food} to the {adjective} {food}",
    "{we} {modal} {verb} the {thing} {future}",
    "{we} {modal} {verb} {count} {things} at {hour}",
    "{we} {modal} {go} to the {spot} {future}",
    "{we} {modal} {go} with {folk_the} at {hour}",
    "{we} {modal} {say} something about the {thing}",
    "{we} {modal} {say} that the {folk} is {adjective}",
    "{folk_the} says that it is {much} {weather} for {animal}",
    "{folk_the} knows which {thing} is {much} {adjective}",
    "{folk_the} does not {verb} any {things} now",
    "if it is {adjective} they will {verb} some {things}",
    "what you {say} is no {adjective} {thing}",
    "where {animal} {go} nobody can {verb} a {thing}",
    "{animal} {go} through the {door} and {verb} the {thing}",
    "how they {verb} {things} i do not know",
    "{we} had enough {food} and no more {food}",
    "{we} were up and down the {street} {past}",
    "{folk_the} took the {thing} off the {thing} and out of the {room}",
    "all the {things} in the {spot} are gone {future}",
    "let {animal} {go} over the {street} said {folk_the}",
    "{folk_the} was in bed the best hour of the {season}",
    "it took less time than {folk_the} could note",
]

_FREE_SLOTS: dict[str, list[str]] = {
    "adjective": ["old", "small", "bright", "dark", "quiet", "loud", "heavy", "cheap", "broken", "beautiful",
                  "funny", "strange", "new", "good", "long", "green", "red", "empty", "famous", "cool"],
    "folk": ["man", "woman", "girl", "farmer", "soldier", "doctor", "teacher", "driver", "captain", "child"],
    "folk_the": ["the man", "a woman", "my mother", "his brother", "peter", "susan", "the doctor", "anna",
                 "my uncle", "the teacher", "the farmer", "her daughter", "the captain", "a child"],
    "carried": ["carried", "brought", "sold", "found", "dropped", "hid", "painted", "removed", "put", "kept"],
    "saw": ["saw", "fed", "feared", "loved", "followed", "met"],
    "moved": ["walked", "travelled", "drove", "ran", "went", "came", "moved"],
    "thing": ["lamp", "table", "box", "letter", "book", "clock", "bell", "record", "phone", "car", "door"],
    "things": ["lamps", "books", "letters", "boxes", "chairs", "tickets", "lights", "cars", "songs"],
    "spot": ["station", "airport", "hospital", "market", "museum", "school", "beach", "river", "bridge",
             "church",
             "garden", "street", "mountain"],
    "meal": ["lunch", "dinner", "breakfast"],
    "weather": ["cold", "warm", "hot", "sunny", "wet", "freezing"],
    "sky": ["rain", "storm", "snow", "sun", "wind"],
    "season": ["summer", "winter", "spring", "autumn"],
    "we": ["i", "we", "you", "they", "people", "the doctor", "my uncle", "susan"],
    "modal": ["will", "can", "must", "should", "would like to", "want to", "need to", "do not", "can not"],
    "verb": ["turn", "switch", "raise", "lower", "close", "shut", "lock", "unlock", "remove", "delete",
             "cancel",
             "add", "bring", "order", "find", "buy", "get", "make", "keep", "set", "put", "send",
             "reserve", "book",
             "cross", "start", "stop", "end", "pause", "finish", "reduce", "increase", "take", "leave",
             "show",
             "have", "give", "expect", "need", "want", "see"],
    "go": ["go", "lead", "sleep", "wake", "sing", "dance", "play", "talk", "eat", "be", "ring", "feel",
           "run"],
    "say": ["say", "tell", "speak", "write", "read", "hear", "know", "listen", "remember", "forget", "mail"],
    "much": ["too", "much too", "so", "already"],
    "street": ["road", "street", "way", "river", "world"],
    "future": ["today", "tomorrow", "tonight", "on friday", "now", "please"],
    "past": ["yesterday", "last night", "on monday", "on sunday", "this morning", "years ago"],
}  # fmt: skip


def _fill(template: str, slots: dict[str, list[str]], random_source: random.Random) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: random_source.choice(slots[match.group(1)]), template)


def commands(split: str, per_intent: int, random_source: random.Random) -> list[tuple[str, str]]:
    """(sentence, intent) pairs, `per_intent` each; split is "train",
    "dev" or "test". A sentence may recur."""
    column = ("train", "dev", "test").index(split)
    pairs = []
    for intent, phrasings in INTENTS.items():
        for number in range(per_intent):
            template = phrasings[column][number % len(phrasings[column])]
            pairs.append((_fill(template, SLOTS, random_source), intent))
    return pairs


def all_commands() -> set[str]:
    """Every command of every split."""
    found = set()
    for phrasings in INTENTS.values():
        for template in itertools.chain(*phrasings):
            names = re.findall(r"\{(\w+)\}", template)
            for values in itertools.product(*(SLOTS[name] for name in names)):
                found.add(template.format(**dict(zip(names, values))))
    return found


def holds_command(sentence: str, all_of_them: set[str]) -> bool:
    """Whether some run of the sentence's words is a command."""
    words = sentence.split()
    return any(
        " ".join(words[first:last]) in all_of_them
        for first in range(len(words))
        for last in range(first + 2, len(words) + 1)
    )


def free_sentences(count: int, random_source: random.Random) -> list[str]:
    """`count` different sentences, none of them a command."""
    slots = {**SLOTS, **_FREE_SLOTS}
    sentences: dict[str, None] = {}  # a dict keeps the order
    banned = all_commands()
    while len(sentences) < count:
        sentence = _fill(random_source.choice(_FREE), slots, random_source)
        if not holds_command(sentence, banned):
            sentences[sentence] = None
    return list(sentences)
