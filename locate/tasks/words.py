"""Words that prompts are made of: each tokenizer chooses those that it writes alike."""

WOMEN = (
    "Mary", "Anna", "Emma", "Julia", "Laura", "Sarah", "Alice", "Susan", "Linda", "Helen", "Karen", "Nancy", "Lisa",
    "Jane", "Kate", "Amy", "Rachel", "Emily", "Claire", "Diana", "Barbara", "Jessica", "Rebecca", "Martha", "Ruth",
    "Sophie", "Olivia", "Victoria", "Elizabeth", "Catherine", "Margaret", "Jennifer", "Michelle", "Amanda",
    "Hannah", "Lucy", "Maria", "Eva", "Ellen", "Paula",
)  # fmt: skip
MEN = (
    "John", "Paul", "Peter", "James", "David", "Robert", "Michael", "William", "Thomas", "Mark", "Steven", "George",
    "Henry", "Frank", "Simon", "Daniel", "Matthew", "Andrew", "Kevin", "Brian", "Eric", "Adam", "Jack", "Tom",
    "Bob", "Richard", "Edward", "Charles", "Joseph", "Anthony", "Patrick", "Martin", "Philip", "Louis", "Alexander",
    "Benjamin", "Samuel", "Luke", "Stephen", "Carl",
)  # fmt: skip
PLACES = (
    "store", "park", "school", "station", "market", "library", "garden", "museum", "beach", "restaurant",
    "hospital", "house", "farm", "bank", "theater", "church", "hotel", "office", "bridge", "lake", "kitchen",
    "castle", "harbor", "village",
)  # fmt: skip
THINGS = (
    "book", "drink", "ring", "ball", "key", "letter", "box", "watch", "pen", "map", "hat", "coin", "lamp", "cup",
    "toy", "ticket", "rope", "basket", "guitar", "camera", "present", "bottle", "flower", "jacket",
)  # fmt: skip
PEOPLE = {
    "doctor": "doctors", "teacher": "teachers", "singer": "singers", "farmer": "farmers", "pilot": "pilots",
    "lawyer": "lawyers", "student": "students", "writer": "writers", "driver": "drivers", "painter": "painters",
    "friend": "friends", "brother": "brothers", "sister": "sisters", "neighbor": "neighbors", "guest": "guests",
    "king": "kings", "soldier": "soldiers", "player": "players", "worker": "workers", "nurse": "nurses",
    "boy": "boys", "girl": "girls", "man": "men", "woman": "women",
}  # fmt: skip
EVENTS = (
    "war", "siege", "journey", "project", "drought", "strike", "festival", "trial", "conflict", "voyage",
    "campaign", "dispute", "expedition", "reign", "famine", "rebellion", "construction", "marriage", "career",
    "study",
)  # fmt: skip
