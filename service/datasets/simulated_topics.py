"""What simulated people ask about, for training: topics, things to say about them, examples.

One block a topic: `= topic`, then points separated by semicolons, then `e.g.` and examples. Under `# field how-to`
points are imperatives, under `# field facts` whole clauses. `simulated_topics_heldout` has the topics for unseen
people; no topic is in both.
"""

from __future__ import annotations

from typing import Final

TOPICS: Final = """
# cooking how-to
= sourdough bread
feed the starter twice a day until it doubles in four hours;
keep the dough at about 24 degrees during the first rise;
fold the dough every thirty minutes instead of kneading it;
bake in a closed iron pot for the first twenty minutes;
let the loaf cool completely before cutting
e.g. a loaf with rye flour needs more water; a cold kitchen doubles the rising time
= vegetable soup
fry the onions slowly before adding any liquid; cut everything into pieces of the same size;
add hard roots first and green leaves last; season in small steps while it simmers;
blend a third of it for body
e.g. carrots need fifteen minutes and spinach needs one; a rind of parmesan deepens the broth
= fluffy rice
rinse the grains until the water runs clear; use one and a half cups of water for each cup;
keep the lid on all the time;
turn the heat down as soon as it boils; rest the pot for ten minutes off the stove
e.g. brown rice takes forty minutes; jasmine rice needs a little less water
= omelettes
beat the eggs only until the whites disappear; warm the pan before the butter goes in;
stir gently for the first seconds;
fold it while the middle is still soft; serve it on a warm plate
e.g. three eggs fit a small pan; chives and goat cheese go in just before folding
# garden how-to
= tomatoes on a balcony
choose a pot that holds at least twenty litres; put the plants where they get six hours of sun;
water the soil and not the leaves;
pinch out the side shoots every week; feed them when the first fruits appear
e.g. cherry varieties ripen early; a south wall keeps the roots warm at night
= a small lawn
mow often and never more than a third of the height; water deeply once a week;
sow bare patches in early autumn;
rake out the moss in spring; leave the short clippings where they fall
e.g. shade mixes cope under trees; a blunt blade leaves brown tips
= compost
mix green waste with dry brown leaves; keep the heap as moist as a wrung sponge; turn it every two weeks;
chop thick stems before they go in; keep meat and cooked food out
e.g. coffee grounds count as green; torn cardboard counts as brown
= roses
plant them in a place with morning sun; prune in late winter above an outward bud;
remove faded flowers all summer;
spread compost round the base; collect fallen leaves to stop black spot
e.g. climbing roses flower on old wood; a bed of lavender keeps aphids busy
# repair how-to
= a dripping tap
turn off the water under the sink; open the tap to empty the pipe;
unscrew the handle and lift out the cartridge;
take the old washer to the shop for its size; grease the thread before closing it again
e.g. a ceramic cartridge is replaced as a whole; lime scale dissolves in vinegar overnight
= a squeaky door
lift the door slightly to find the noisy hinge; pull the pin out with a nail and a hammer;
rub the pin with candle wax;
wipe off the old grease; tighten every screw of the frame
e.g. graphite from a pencil works in a lock; a longer screw holds in worn wood
= a flat bicycle tyre
turn the bicycle upside down and take out the wheel; loosen one side of the tyre with two levers;
find the hole under water;
roughen the rubber before the glue; check the tyre for glass from the inside
e.g. a slow leak often sits at the valve; a patch needs five minutes to dry
= painting a room
wash the walls with sugar soap first; fill the holes and sand them flat; cut in the edges with a brush;
roll in long overlapping strokes; remove the tape while the paint is wet
e.g. a dark wall needs a primer; ten square metres take about one litre
# travel how-to
= a weekend in Lisbon
walk up to the castle before nine; buy a day card for trams and lifts; eat lunch away from the main square;
take the train to the coast on the second day; carry cash for small cafes
e.g. tram 28 is empty at dawn; the tile museum sits in an old convent
= packing a suitcase
make the list two days before; roll soft clothes and fold stiff ones; put shoes at the wheel end;
keep medicine in the hand luggage; leave a quarter of the space free
e.g. socks fit inside shoes; one scarf serves as a blanket
= long flights
choose an aisle seat for the legs; drink a glass of water every hour;
set the watch to the new time at take-off;
walk the cabin twice a night; sleep with a neck support
e.g. a row behind the kitchen is noisy; morning light shortens jet lag
= hiking in the Alps
start before seven to be down by the storms; carry a paper map and a full battery;
wear boots that are already broken in;
turn back at the planned hour; tell the hut about the route
e.g. a steep kilometre takes half an hour; snow lies in the passes until July
# fitness how-to
= running a first 10k
run three times a week and no more; keep most runs slow enough to talk; add one kilometre every second week;
take every fourth week easy; buy shoes in the afternoon
e.g. a talk test replaces a watch; hills count as strength work
= push-ups
begin with the hands on a table; keep the body straight from heel to head; lower the chest in two seconds;
stop two repetitions before failing; train on every other day
e.g. a kitchen counter is a good height; elbows point back at an angle
= better sleep
get up at the same hour every day; keep the bedroom cool and dark; leave the phone outside the room;
drink no coffee after two; get out of bed after twenty minutes awake
e.g. eighteen degrees suits most people; a paper book is dull enough
= back pain at a desk
raise the screen to the height of the eyes; stand up every half hour; place both feet flat on the floor;
strengthen the hips twice a week; keep the mouse close to the body
e.g. a stack of books lifts a laptop; a rolled towel supports the lower back
# learning how-to
= Spanish vocabulary
learn ten words a day and not fifty; put every word into a sentence; review after one day and after one week;
read short news stories aloud; label things in the house
e.g. a card in the hall reads espejo; songs bring past tenses along
= playing the guitar
practise fifteen minutes every day; learn to change between two chords slowly; use a metronome from the start;
keep the thumb behind the neck; play a whole song early
e.g. G and C share a finger; most campfire songs need three chords
= preparing an exam
collect old papers before reading the book; plan backwards from the date;
test from memory with the book closed;
explain a chapter to a friend; sleep well the night before
e.g. a blank sheet shows the gaps; formulas go on a card by the mirror
= drawing faces
draw the big shape before the details; place the eyes in the middle of the head;
compare distances with a pencil;
squint to see the shadows; fill a page with noses
e.g. the ear spans brow to nose; an egg shape is enough to begin
# computing how-to
= backing up photos
keep three copies on two kinds of media; store one copy outside the house; let the program run every night;
try to restore a file each month; name the folders by year and month
e.g. an old disk at a friend counts; a card in the camera is not a copy
= a slow laptop
look at which program uses the memory; remove what starts by itself; free a tenth of the disk;
clean the dust from the fan;
replace the old drive with a solid one
e.g. a browser with forty tabs eats four gigabytes; a new drive halves the start
= strong passwords
use a password manager for everything; make the main one from five random words;
turn on the second factor for mail;
change only what has leaked; print the recovery codes
e.g. correct horse battery staple shows the idea; a key on the ring replaces text messages
= sorting in Python
use the built-in function before writing one; pass a key instead of a comparison;
sort by several fields with a tuple;
remember that the order of equals is kept; reverse with the flag and not afterwards
e.g. a lambda picks the price; names sort by last then first
# money how-to
= a household budget
write down every expense for a month; group the costs into fixed and free; pay the savings on the first day;
plan the yearly bills as twelfths; look at the numbers every Sunday
e.g. insurance of 600 is 50 a month; a jar for coffee shows its price
= buying a used car
read the service book before the test drive; start the engine when it is cold;
look for rust under the carpets;
let a garage check the brakes; compare ten offers for the price
e.g. white smoke hints at the head gasket; worn pedals betray the mileage
= negotiating a salary
find three numbers from the market first; let the other side name a figure; ask for a range above the goal;
keep quiet after the question; get the result in writing
e.g. a training budget counts as pay; a start in spring moves the review
= saving energy at home
lower the heating by one degree; seal the gaps round the windows; wash at thirty degrees;
switch off devices at the plug;
let the fridge stand away from the oven
e.g. one degree saves six percent; a router uses as much as a lamp
# nature facts
= tides
the moon pulls the water on the near side a little harder; the earth turns under two bulges of water each day;
the sun adds to the pull at full and new moon; the shape of a bay makes the range larger;
friction slows the turning of the earth
e.g. the Bay of Fundy rises sixteen metres; the Mediterranean hardly moves
= rainbows
sunlight bends when it enters a drop; each colour leaves at its own angle;
the drop reflects the light at its back;
the bow stands opposite to the sun; a second bow shows the colours reversed
e.g. a garden hose makes one at noon; from a plane it is a full circle
= volcanoes
molten rock rises because it is lighter than its surroundings; gas in the melt drives the explosion;
thin lava flows far and builds flat shields; thick lava plugs the vent until it bursts;
ash makes soil rich over centuries
e.g. Hawaii pours and Vesuvius explodes; Iceland sits on a crack between plates
= bird migration
birds follow food and daylight across the globe; they read the stars and the field of the earth;
young birds inherit the direction of the route; fat stores double the weight before the trip;
wind decides the day of departure
e.g. arctic terns fly pole to pole; swallows cross the desert in three days
# body facts
= caffeine
it blocks the signal that makes the brain sleepy; half of it is still there after five hours;
the body gets used to a daily dose;
small amounts sharpen attention; late cups cut deep sleep
e.g. an espresso holds sixty milligrams; green tea holds half of that
= fever
the body raises its own thermostat on purpose; warmth slows the growth of many germs;
shivering makes the heat;
sweat ends it when the target falls; children reach high values quickly
e.g. thirty-nine degrees is common in flu; a vaccine gives a mild one for a day
= muscle growth
training makes tiny tears in the fibres; protein repairs them thicker than before;
rest is when the growth takes place;
nerves learn faster than muscles grow; the gain slows after the first year
e.g. beginners double their weights in months; sleep of five hours halves the effect
= allergies
the immune system mistakes a harmless thing for a threat; antibodies sit on cells full of histamine;
the second contact sets off the reaction; pollen counts peak in dry wind; small rising doses teach tolerance
e.g. birch and apple share a protein; rain washes the air for hours
# history facts
= the printing press
movable letters made a page cheap to set; books fell to a fifth of their price in decades;
spelling settled because of printers;
ideas crossed borders faster than censors; cities with presses grew more quickly
e.g. Venice printed a third of all titles; a Bible took three years to set
= the Roman roads
soldiers built them in layers of stone and gravel; straight lines saved days of marching;
milestones told the distance to the capital;
post riders changed horses every few miles; many modern routes lie on top of them
e.g. the Via Appia still carries cars; a letter reached Gaul in a week
= the potato in Europe
sailors brought it from the Andes in the sixteenth century; people first grew it for the flowers;
it fed twice as many on a field as wheat;
one disease destroyed the harvest of a whole island; armies could not burn what grew in the ground
e.g. a king had his fields guarded to make them tempting; Ireland lost a quarter of its people
= the first railways
rails came from mines long before steam; the engines frightened horses and investors alike;
towns agreed on one clock because of timetables;
fresh milk reached cities overnight; tickets made travel ordinary
e.g. the Rocket ran at forty-five kilometres an hour; Swindon grew out of a workshop
# technology facts
= solar panels
light knocks electrons loose in silicon; a built-in field pushes them one way; heat lowers the yield a little;
an inverter turns the current into mains; the price fell by nine tenths in a decade
e.g. ten square metres cover half a household; a cold clear day beats a hot one
= GPS
satellites send the time of an atomic clock; the receiver compares four of the times;
distance follows from the delay of the signal;
clocks in orbit run faster by a known amount; buildings reflect the signal and blur the position
e.g. a nanosecond is thirty centimetres; a tunnel leaves only the wheel sensors
= touch screens
a grid of wires holds a small charge; the finger drains some of it; the chip finds the place from the change;
a glove blocks it because it does not conduct; water confuses it with false touches
e.g. a sausage works as a stylus; old ones felt pressure instead
= search engines
programs follow links and store the pages; an index lists the pages of every word;
ranking weighs links and words and clicks;
the answer comes from memory and not from the web; fresh pages are visited more often
e.g. a news site is read every minute; a rare name finds one page
"""
