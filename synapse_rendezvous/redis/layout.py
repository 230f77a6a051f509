"""How sessions are kept inside Redis, and what the scripts that keep them have in common.

Three keys, all with the homeserver's name in braces, so that a cluster keeps them together:

- `...:sessions`, a hash: by the id of each session its current revision, laid out as `VALUE` says;
- `...:queue`, a list: the ids in the order of creation and hence of expiry, those of deleted sessions among them until
  they come to the front;
- `...:totals`, a hash: the `bytes` of all payloads, and the sessions of each client and each network that shares.

The keys stand and fall together: Redis drops all of them a while after the last session's end, and where one is
missing, the others mean nothing any more, and whoever creates drops them.

What changes the sessions changes the totals in the same script, and what has expired is uncounted before a quota
refuses anybody, so the totals are exact at each refusal and nothing leaks. (Where sessions stop living equally long,
because `ttl` was made shorter or Redis' clock was set back, the shorter ones count until the longer ones before them
are over; they are not served.) All times are Redis' own: it does not matter whether the clocks of the workers agree.
"""

import re

VALUE = re.compile(
    # The letter keeps Synapse's connection from reading a value as a number.
    rb"r(?P<tag>.{20})(?P<previous_tag>.{20})(?P<last_modified_ms>\d{13})(?P<expires_ms>\d{13})"
    rb"(?P<updates>\d{7})"
    # Lengths in front of what has no fixed length; the rest is the payload.
    rb"(?P<client_length>\d{2})",
    re.DOTALL,
)
"""How a value begins. Then come the client, the length of the type in three digits, the type, and the payload."""

RECORD = re.compile(r"(?P<updates>\d+) (?P<id>\S+)")
"""What a script tells of a session that it found expired."""

HELD = re.compile(rb"(\d+) (-?\d+) (\d+) ([01])")
"""Sessions, bytes, clients, and whether more of the sessions may be over."""

NO_TAG = b"." * 20
"""Stands for the previous tag in the first revision."""

ABSENT, ANY = b"-", b"*"
"""What a script is told of a list of tags that is not there, and of one that every tag is in. Others are `,tag,tag`."""

# The offsets below are those of VALUE.
KEYS = """
local sessions, queue, totals = unpack(KEYS)
local id = ARGV[1]
local ended = {}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function is_over(value)
  return tonumber(string.sub(value, 55, 67)) <= now
end
"""

CURRENT = """
local value = redis.call('HGET', sessions, id)
if not value or is_over(value) then
  return {'gone', now, '', ended}
end
"""

READ = """
local function read(value)
  local head_end = 76 + tonumber(string.sub(value, 75, 76))
  return {
    tag = string.sub(value, 2, 21),
    previous = string.sub(value, 22, 41),
    modified = tonumber(string.sub(value, 42, 54)),
    expires = tonumber(string.sub(value, 55, 67)),
    updates = tonumber(string.sub(value, 68, 74)),
    client = string.sub(value, 77, head_end),
    head = string.sub(value, 1, head_end),
    size = #value - head_end - 3 - tonumber(string.sub(value, head_end + 1, head_end + 3)),
  }
end
"""

HOLDS = """
local session = read(value)

local function has(tags, one)
  return tags == '*' or string.find(tags, one, 1, true) ~= nil
end

-- RFC 9110 section 13.2.2 for methods that change something, as Preconditions.evaluate has it.
local function holds(if_match, if_none_match, unmodified_since)
  if if_match ~= '-' then
    if not has(if_match, session.tag) then
      return false
    end
  elseif unmodified_since ~= '-' and math.floor(session.modified / 1000) > tonumber(unmodified_since) then
    return false
  end
  return not has(if_none_match, session.tag)
end
"""

QUOTAS = """
-- Where a key is missing, as after an eviction, nothing is counted until somebody creates and drops the others.
local is_whole = redis.call('EXISTS', sessions, queue, totals) == 3

local function total(field)
  return tonumber(redis.call('HGET', totals, field) or 0)
end

-- As clients.shares has it.
local function shares(client)
  if string.find(client, '.', 1, true) then
    return {{client, 1}}
  elseif #client == 16 then
    return {{client, 1}, {string.sub(client, 1, 14), 3}, {string.sub(client, 1, 12), 6}}
  end
  return {}
end

local function count_bytes(bytes)
  if is_whole then
    redis.call('HINCRBY', totals, 'bytes', bytes)
  end
end

local function count(number, bytes, client)
  count_bytes(bytes)
  for _, share in ipairs(is_whole and shares(client) or {}) do
    if redis.call('HINCRBY', totals, share[1], number) <= 0 then
      redis.call('HDEL', totals, share[1])
    end
  end
end

-- Drop the first ids of the queue, up to one that lives, and what is over with them; return how many, and whether there
-- may be more. A hundred at most, and about a megabyte, because Redis does nothing else meanwhile.
local function sweep()
  local dropped, bytes = 0, 0
  while dropped < 100 and bytes < 1000000 do
    local oldest = redis.call('LINDEX', queue, 0)
    local value = oldest and redis.call('HGET', sessions, oldest)
    if not oldest or value and not is_over(value) then
      return dropped, false
    end
    if value then  -- else it was deleted
      local session = read(value)
      redis.call('HDEL', sessions, oldest)  -- the first write, because a full Redis lets it through
      count(-1, 0 - session.size, session.client)  -- Redis takes no -0
      table.insert(ended, session.updates .. ' ' .. oldest)
      bytes = bytes + #value
    end
    redis.call('LPOP', queue)
    dropped = dropped + 1
  end
  return dropped, true
end

-- Whether there is room, once as many of the expired are forgotten as it takes.
local function makes(room)
  while not room() do
    if sweep() == 0 then
      return false
    end
  end
  return true
end

local function makes_room_for(bytes, max_total_bytes)
  return bytes <= 0 or makes(function()
    return total('bytes') + bytes <= tonumber(max_total_bytes)
  end)
end
"""

STORE = """
local function store(tag, previous, expires, updates, client, write)
  local head = string.format('r%s%s%013d%013d%07d%02d%s', tag, previous, now, expires, updates, #client, client)
  redis.call('HSET', sessions, id, head .. write)
  return head
end
"""

TELL = """
-- Wake those who wait in other processes. A user without the right to do that has written all the same.
local function tell(channel)
  redis.pcall('PUBLISH', channel, id)
end
"""
