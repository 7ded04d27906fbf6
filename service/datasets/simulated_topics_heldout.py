"""What simulated people ask about, held out: the topics of unseen people, in the format of `simulated_topics`."""

from __future__ import annotations

from typing import Final

TOPICS: Final = """
# cooking how-to
= pancakes
let the batter stand for half an hour; melt the butter into the milk; heat the pan until a drop dances;
turn each one when the bubbles stay open; keep the finished ones in a warm oven
e.g. a ripe banana replaces an egg; sour milk makes them thicker
= roast chicken
salt the skin the evening before; dry it with paper until nothing sticks; begin hot and finish slow;
measure the thigh and not the breast; catch the juices for the gravy
e.g. a lemon inside keeps the meat moist; potatoes under the rack roast in the fat
= pasta sauce
crush whole tinned tomatoes by hand; soften garlic without colour; save a cup of the cooking water;
reduce it until the spoon leaves a trail; finish the noodles in the pan
e.g. two anchovies melt away; a basil stalk gives more than its leaves
# garden how-to
= indoor herbs
stand them on the brightest sill; cut above a pair of leaves; empty the saucer after an hour;
split shop pots into four; bring them in before the frost
e.g. mint prefers its own pot; a parsley sowing needs three weeks
= apple trees
open the crown so that a hat flies through; thin the fruit in June; paint the trunk white in winter;
hang bands of glue in October; pick with a quarter turn
e.g. two varieties pollinate each other; a dwarf rootstock bears in three years
# repair how-to
= a blocked drain
pull out the hair with a bent wire; pour boiling water in two goes; work the plunger with the overflow closed;
unscrew the trap over a bucket; fit a sieve afterwards
e.g. soda and vinegar loosen fat; a hired spiral reaches five metres
= a wobbly table
find the short leg on a level board; glue the loose joint and clamp it overnight;
fit felt of the right thickness;
drive a wedge into the tenon; let wood rest in the room for a week
e.g. a folded card shows the gap; a strap works as a clamp
# travel how-to
= camping with children
practise one night in the garden; pitch on the high side of the field; give each child a torch of their own;
cook one pot dinners; bring twice the socks
e.g. a star chart fills the evening; porridge keeps till noon
= Tokyo on a budget
eat at counters with a ticket machine; load a rail card at the airport; stay one stop outside the ring line;
visit towers that ask no fee; shop for dinner after eight
e.g. the city hall has a free view; a bowl of noodles costs less than a coffee
# fitness how-to
= learning to swim
breathe out under water; float on the back before any stroke; look at the floor of the pool;
kick from the hip with loose feet; rest at every wall
e.g. a board isolates the legs; four lengths are plenty in week one
= stretching
warm up for five minutes first; hold each position for thirty seconds; breathe into the tight side;
stay short of pain; repeat it on most evenings
e.g. a belt lengthens the arm; hamstrings answer after two weeks
# learning how-to
= touch typing
cover the keys with a cloth; hold the home row with light fingers; go for accuracy ahead of speed;
drill the weak letters; type ten minutes at breakfast
e.g. q and p tire the small fingers; sixty words a minute arrive in spring
= public speaking
open with a story and not a thanks; write the last sentence first; practise standing with a timer;
pause at every full stop; look at one face for a whole thought
e.g. a recording shows the ums; three points survive the walk home
# computing how-to
= a home network
place the box in the middle of the flat; use a cable for the television; change the default name and key;
split guests from your own machines; update the firmware twice a year
e.g. a fish tank swallows the signal; channel eleven is often empty
= spreadsheets
keep one fact in one cell; name the ranges that you reuse; freeze the heading row;
check totals in a second way; save a dated copy before big changes
e.g. a pivot sums by month; dates typed as text refuse to sort
# money how-to
= paying off debt
list every loan with its rate; pay the dearest one first; stop new borrowing by leaving the card at home;
call the bank ahead of a missed date; celebrate each closed account
e.g. an overdraft costs more than a loan; a snowball begins with the smallest
= renting a flat
visit in the evening for the noise; photograph every room on the first day; read the clause about repairs;
ask a neighbour about the winter; keep the deposit receipt
e.g. mould hides behind wardrobes; a north room eats heating oil
# nature facts
= lightning
ice grains rub charges apart inside the cloud; a faint leader feels its way to the ground;
the bright stroke runs upwards;
air becomes hotter than the face of the sun; thunder is the sudden swelling of that air
e.g. three seconds make a kilometre; tall lone trees are struck first
= coral reefs
tiny animals build the stone from seawater; algae in their skin feed them; warm water drives the algae out;
fish graze the weeds away; a reef breaks the waves before the beach
e.g. a degree for a month bleaches them; parrotfish make white sand
# body facts
= memory
a new trace is fragile for hours; sleep replays the day in fast motion; recalling a thing rewrites it;
smells reach the old centres directly; stress narrows what is stored
e.g. a tune returns a whole summer; a route is kept by landmarks
= hiccups
a nerve makes the diaphragm jerk; the voice box snaps shut on the breath; a full stomach sets it off;
holding air raises carbon dioxide; most bouts end within minutes
e.g. cold soda is a usual culprit; unborn babies have them
# history facts
= the spice trade
monsoon winds set the calendar of the ships; each harbour added its toll; pepper paid rents and dowries;
a sea route broke an old monopoly; plantations ended the scarcity
e.g. nutmeg bought Manhattan; Venice lived on cloves
= the bicycle
two equal wheels made it safe to ride; air in the tyres came from a vet; women gained a way out of the house;
clubs lobbied for paved roads; aeroplane makers learned on its workshops
e.g. the Wrights sold frames; the high wheel broke many wrists
# technology facts
= batteries
ions wander between two layers; charging pushes them back uphill; heat ages the layers quickly;
a middle level suits them longest; cold thickens the path
e.g. a phone at forty percent stores well; winter takes a third of the range
= noise-cancelling headphones
microphones hear the hum outside; a chip makes the mirror wave; the sum of both is near silence;
steady tones vanish better than voices; padding takes the high notes
e.g. engines fade and babies remain; wind fools the microphone
"""
