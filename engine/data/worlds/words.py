"""The words of JudgeWorld. No word occurs twice, so that a tokenizer can have one token for each."""

VALUES: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "pink", "gold", "grey", "teal"),
    "pet": ("cat", "dog", "hen", "fox", "cow", "pig"),
    "town": ("Rome", "Oslo", "Lima", "Bonn", "Cork", "Bath"),
    "day": ("Monday", "Tuesday", "Friday", "Sunday", "today", "tomorrow"),
    "fruit": ("fig", "plum", "pear", "lime", "kiwi", "grape"),
    "drink": ("tea", "milk", "cola", "water", "juice", "beer"),
    "tool": ("saw", "axe", "drill", "rake", "hammer", "brush"),
    "month": ("May", "June", "July", "March", "April", "August"),
}
"""First edition: item -> its value words."""

PARAPHRASES: dict[str, dict[str, str]] = {
    "color": {"red": "crimson", "blue": "azure", "pink": "rose", "grey": "ashen", "teal": "turquoise"},
    "pet": {"cat": "kitten", "dog": "puppy", "hen": "chicken", "cow": "calf", "pig": "hog"},
    "day": {"Monday": "Mon", "Tuesday": "Tue", "Friday": "Fri", "Sunday": "Sun", "Saturday": "Sat"},
    "month": {"June": "Jun", "July": "Jul", "March": "Mar", "April": "Apr", "August": "Aug"},
    "drink": {"tea": "chai", "water": "aqua", "beer": "ale", "wine": "vino", "coffee": "espresso"},
    "tool": {"axe": "hatchet", "drill": "borer", "hammer": "mallet", "spade": "shovel", "brush": "broom"},
    "size": {"large": "big", "small": "little", "tall": "high", "wide": "broad", "thin": "slim"},
    "mood": {"happy": "glad", "sad": "gloomy", "angry": "cross", "calm": "quiet", "tired": "weary"},
}
"""Second edition: item -> value word -> another word for the same value."""
