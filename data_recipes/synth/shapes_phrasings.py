"""How questions about the shapes world are worded: several ways for training, others for the held-out split only."""

from __future__ import annotations

NUMBERS = ("none", "one", "two", "three", "four")

# kind -> (phrasings for training, phrasings for the held-out split only). {m} is the medium.
PHRASINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "list": (
        ("What shapes are there?", "What is in the {m}?", "What can you see?", "Which shapes are in the {m}?",
         "What is shown?", "What is there?", "Which shapes are shown?", "List the shapes.", "Which shapes do you see?",
         "What do you see?", "What do you see in the {m}?", "Which shapes can be seen?"),
        ("Which shapes can you see?", "What is shown in the {m}?"),
    ),
    "shape": (
        ("Which shape is {c}?", "What shape is the {c} one?", "What is the {c} shape?", "What is the {c} thing?",
         "Which shape is the {c} thing?", "What is the {c} one?"),
        ("Which shape is the {c} one?", "What shape is {c}?"),
    ),
    "colour": (
        ("What colour is the {s}?", "Which colour is the {s}?", "What color is the {s}?", "What is the color of the {s}?",
         "Tell me the colour of the {s}.", "What colour is the {s} in the {m}?"),
        ("What is the colour of the {s}?", "Which color is the {s}?"),
    ),
    "colours": (
        ("What colours are the shapes?", "Which colour is each shape?", "Say the colour of each shape.",
         "What colours do the shapes have?", "Which colours have the shapes?"),
        ("What colour is each shape?",),
    ),
    "count": (
        ("How many shapes are there?", "How many shapes are in the {m}?", "How many shapes can you see?",
         "Count the shapes.", "How many shapes do you see?"),
        ("How many shapes are shown?", "Count the shapes in the {m}."),
    ),
    "count_shape": (
        ("How many {ss} are there?", "How many {ss} are in the {m}?", "How many {ss} can you see?", "Count the {ss}.",
         "How many {ss} do you see?"),
        ("How many {ss} are shown?", "Count the {ss} in the {m}."),
    ),
    "count_colour": (
        ("How many {c} shapes are there?", "How many {c} shapes are in the {m}?", "How many shapes are {c}?",
         "Count the {c} shapes."),
        ("How many {c} shapes can you see?", "Count the {c} shapes in the {m}."),
    ),
    "presence": (
        ("Is there {a}?", "Is there {a} in the {m}?", "Can you see {a}?", "Do you see {a}?", "Is {a} shown?"),
        ("Is {a} in the {m}?", "Do you see {a} in the {m}?"),
    ),
    "where": (
        ("Where is {the}?", "Where is {the} in the {m}?", "In which part of the {m} is {the}?"),
        ("Where can you see {the}?",),
    ),
    "when": (
        ("When is {the} visible?", "When does {the} appear?", "When can you see {the}?", "When is there {a}?",
         "When is {the} there?", "From when to when is {the} shown?", "At what time is {the} visible?",
         "When is {the} shown in the {m}?", "When exactly do we see {the}?", "When in the {m} is {the}?",
         "When could you see {the}?", "When is {the} seen?"),
        ("When do you see {the}?", "When is {the} in the {m}?"),
    ),
    "at": (
        ("What is there at {t}?", "What do you see at {t}?", "Which shapes are there at {t}?", "What is shown at {t}?",
         "At {t}, what is in the {m}?"),
        ("What can you see at {t}?",),
    ),
    "times": (
        ("Say the times of each shape.", "Which times has each shape?", "Give the times of the shapes.",
         "When is each shape there?"),
        ("Give the times of each shape.",),
    ),
    "end": (
        ("When does {the} disappear?", "When does {the} go away?", "When does {the} vanish?", "When is {the} gone?",
         "At what time does {the} disappear?"),
        ("When does {the} go?",),
    ),
    "first": (
        ("Which shape appears first?", "What appears first?", "Which shape comes first?", "What is the first shape?"),
        ("What comes first?",),
    ),
    "last": (
        ("Which shape appears last?", "What appears last?", "Which shape comes last?", "What is the last shape?"),
        ("What comes last?",),
    ),
    "which_first": (
        ("Which appears first, {the} or {the2}?", "What comes first, {the} or {the2}?",
         "Which shape appears first, {the} or {the2}?"),
        ("Which comes first, {the} or {the2}?",),
    ),
    "before": (
        ("Does {the} appear before {the2}?", "Is {the} there before {the2}?", "Do you see {the} before {the2}?"),
        ("Does {the} come before {the2}?",),
    ),
    "order": (
        ("In which order do the shapes appear?", "In what order do the shapes come?", "List the shapes in order."),
        ("In what order do the shapes appear?",),
    ),
    "describe": (
        ("Describe the {m} with times.", "What happens, and when?", "Tell me what happens with times.",
         "List what is shown with times.", "Describe everything and when."),
        ("Describe what happens with times.",),
    ),
    "caption": (
        ("Describe the {m}.", "Describe everything.", "Tell me what is shown.", "Tell me what you see."),
        ("Describe what is shown.",),
    ),
    "motion": (
        ("How does {the} move?", "What does {the} do?"),
        ("How does {the} move in the {m}?",),
    ),
    "turn_when": (
        ("When does {the} turn {c}?", "When does {the} change its colour?", "When does {the} become {c}?"),
        ("When does {the} change to {c}?",),
    ),
    "turn_to": (
        ("What colour does {the} turn?", "What colour does {the} change to?", "Which colour does {the} become?"),
        ("Which colour does {the} turn?",),
    ),
    "collide": (
        ("When do {the} and {the2} collide?", "When do {the} and {the2} hit each other?", "When does {the} hit {the2}?"),
        ("When does {the} collide with {the2}?",),
    ),
    "digit": (
        ("What digit is shown?", "Which digit is in the {m}?", "What number can you see?", "Which digit can you see?",
         "What is the digit?", "Which number is shown?"),
        ("Which digit is shown?", "What digit is in the {m}?"),
    ),
    "digit_when": (
        ("When is the digit shown?", "When does the digit appear?", "When can you see the digit?",
         "When is the number visible?", "When is the digit there?"),
        ("When is the digit visible?",),
    ),
    "digit_presence": (
        ("Is there a digit?", "Can you see a digit?", "Is there a digit in the {m}?"),
        ("Do you see a digit?",),
    ),
    "beep_when": (
        ("When is the beep?", "When do you hear the beep?", "When is there a beep?", "When can you hear a beep?"),
        ("When do you hear a beep?",),
    ),
    "repeat": (
        ("Say: {t}", "Repeat: {t}", "Say this: {t}", "Write: {t}"),
        ("Repeat this: {t}",),
    ),
    "beep_count": (
        ("How many beeps are there?", "How many beeps do you hear?", "Count the beeps."),
        ("How many beeps can you hear?",),
    ),
}  # fmt: skip
