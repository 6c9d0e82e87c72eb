"""The sentences of the demo: spoken commands with 24 intents, and free sentences that use the same words.

Commands are requests. Free sentences are short, use the commands' words in other combinations, and contain no command.
Each intent has phrasings for training, for choosing settings (dev) and for the final test, so that the probe is tested
on phrasings that it has not seen.
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
    "room": ["kitchen", "bedroom", "garden", "office"],
    "player": ["radio", "music", "television"],
    "genre": ["jazz", "rock", "piano"],
    "city": ["london", "paris", "boston", "chicago"],
    "day": ["today", "tomorrow", "on sunday"],
    "hour": ["five", "seven", "ten"],
    "person": ["my mother", "peter", "susan", "the doctor"],
    "food": ["pizza", "bread", "milk", "coffee"],
    "count": ["two", "three", "four"],
    "place": ["station", "airport", "hospital", "market"],
    "door": ["front door", "window", "gate"],
    "animal": ["dogs", "horses"],
}

_FREE: list[str] = [
    "{person} {past} the {thing}",
    "{person} {past} {count} {things}",
    "{person} {past} some {food} {when}",
    "{person} {past} the {quality} {thing}",
    "{person} {past} me a {thing}",
    "{person} and {person} {past} us",
    "the {thing} is {much} {quality}",
    "the {thing} was {quality} {when}",
    "the {quality} {thing} and the {thing}",
    "a {quality} {thing} from {city}",
    "a {thing} without {things}",
    "{food} and {food} for {person}",
    "{food} or {food} in the {room}",
    "{count} {things} at the {place}",
    "{count} {things} near the {thing}",
    "{things} in {city} are {much} {quality}",
    "{things} {sense} {quality} {when}",
    "{people} {verb} {things} {when}",
    "{people} {verb} and {verb} at {hour}",
    "{people} {modal} {verb} at {hour}",
    "{people} {modal} {verb} this {thing}",
    "{people} {modal} {verb} {person} {when}",
    "{people} {verb} {much} {quality} {things}",
    "how {people} {verb} the {thing}",
    "why {people} {modal} {verb} it",
    "if {people} {verb} the {things}",
    "when {person} {past} in the {room}",
    "where {animal} {verb} {food}",
    "{animal} {verb} through the {door}",
    "{animal} like the {quality} {place}",
    "no {thing} on the {thing}",
    "it is {quality} at the {place}",
    "up and down the {place}",
    "{genre} {things} from the {player}",
    "all the {things} of {person}",
    "your {thing} or my {thing}",
    "what {people} {verb} is {quality}",
    "which {thing} of the {place}",
    "nobody {past} your {thing}",
    "we are off to {city} {when}",
    "there is more {food} {when}",
    "there are less {things} {when}",
    "i am {much} {quality}",
    "{people} have enough {things}",
    "anything about the {thing}",
    "something {quality} with {food}",
    "out of the {place}",
    "any {things} in the {room}",
    "that {thing} goes to {city}",
    "the sun shines on {animal}",
    "it hurts my {things}",
    "a {thing} for an uncle",
    "{things} can be {quality}",
    "what happened to the {thing}",
]

_FREE_SLOTS: dict[str, list[str]] = {
    "thing": ["light", "lamp", "heat", "sound", "volume", "music", "song", "record", "weather", "rain",
              "snow", "wind",
              "storm", "umbrella", "clock", "time", "hour", "alarm", "bell", "bed", "phone", "call",
              "number", "message",
              "letter", "note", "table", "restaurant", "cafe", "taxi", "cab", "car", "ride", "driver",
              "road", "street",
              "way", "door", "window", "gate", "news", "paper", "world", "list", "joke", "story", "tune",
              "laugh",
              "home", "dinner", "lunch"],
    "things": ["lights", "songs", "records", "people", "ears", "jokes", "tables", "letters", "messages",
               "doors",
               "cars", "roads", "clocks"],
    "quality": ["bright", "dark", "warm", "hot", "cold", "cool", "loud", "louder", "quiet", "late",
                "early", "open", "closed",
                "locked", "funny", "good", "new", "best", "hungry", "tired", "sunny", "freezing"],
    "much": ["too", "so", "very", "much too"],
    "past": ["turned", "heard", "played", "stopped", "wanted", "found", "sent", "opened"],
    "verb": ["turn", "switch", "put", "make", "give", "see", "raise", "lower", "hear", "play", "start",
             "stop", "end",
             "sing", "dance", "find", "know", "say", "tell", "wake", "sleep", "set", "ring", "cancel",
             "delete",
             "speak", "talk", "dial", "send", "write", "read", "order", "bring", "get", "eat", "want",
             "like", "feel",
             "book", "reserve", "show", "lead", "guide", "go", "open", "unlock", "leave", "close", "shut",
             "lock",
             "keep", "add", "buy", "remember", "need", "remove", "take", "forget", "laugh", "listen",
             "increase",
             "reduce", "silence", "finish", "pause", "expect", "cross", "let"],
    "sense": ["sound", "look", "feel"],
    "modal": ["can", "can not", "must", "should", "do not", "would", "will"],
    "people": ["i", "we", "you", "they", "people"],
    "when": ["today", "tomorrow", "on sunday", "now", "already", "please"],
}  # fmt: skip


def _fill(template: str, slots: dict[str, list[str]], random_source: random.Random) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: random_source.choice(slots[match.group(1)]), template)


def commands(split: str, per_intent: int, random_source: random.Random) -> list[tuple[str, str]]:
    """(sentence, intent) pairs, `per_intent` of each; split: "train", "dev" or "test". Sentences may repeat."""
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
    """Whether consecutive words of the sentence form a command."""
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
