-- What the scripts that change sessions have in common: how a revision is stored, and the totals.

-- Where a key is missing, as after an eviction, nothing is counted until a creation drops the others.
local is_whole = redis.call('EXISTS', sessions, queue, totals) == 3

local function parse(value)
  local head_end = 76 + tonumber(string.sub(value, 75, 76))
  return {
    tag = string.sub(value, 2, 21),
    expires = tonumber(string.sub(value, 55, 67)),
    updates = tonumber(string.sub(value, 68, 74)),
    client = string.sub(value, 77, head_end),
    head = string.sub(value, 1, head_end),
    size = #value - head_end - 3 - tonumber(string.sub(value, head_end + 1, head_end + 3)),
  }
end

local function store(tag, previous, expires, updates, client, write)
  local head = string.format('r%s%s%013d%013d%07d%02d%s', tag, previous, now, expires, updates, #client, client)
  redis.call('HSET', sessions, id, head .. write)
  return head
end

-- Wake the waiters of other processes. A user without the right to publish has changed the session all the same.
local function publish(channel)
  redis.pcall('PUBLISH', channel, id)
end

local function total(field)
  return tonumber(redis.call('HGET', totals, field) or 0)
end

-- As clients.quota_keys has it.
local function quota_keys(client)
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
  if not is_whole then
    return
  end
  count_bytes(bytes)
  redis.call('HINCRBY', totals, 'sessions', number)
  for _, key in ipairs(quota_keys(client)) do
    if redis.call('HINCRBY', totals, key[1], number) <= 0 then
      redis.call('HDEL', totals, key[1])
    end
  end
end

local function drop(key)
  redis.call('HDEL', sessions, key, outcomes_of(key))
end

-- Drop the first ids of the queue, up to one that lives, and the expired sessions with them; return how many, and
-- whether there may be more. A hundred at most, and about a megabyte, because Redis does nothing else meanwhile.
local function sweep()
  local dropped, bytes = 0, 0
  while dropped < 100 and bytes < 1000000 do
    local oldest = redis.call('LINDEX', queue, 0)
    local value = oldest and redis.call('HGET', sessions, oldest)
    if not oldest or value and not is_over(value) then
      return dropped, false
    end
    if value then  -- otherwise it was deleted
      local session = parse(value)
      drop(oldest)  -- the first write, because a full Redis lets it through
      count(-1, 0 - session.size, session.client)  -- Redis takes no -0
      table.insert(ended, session.updates .. ' ' .. oldest)
      bytes = bytes + #value
    end
    redis.call('LPOP', queue)
    dropped = dropped + 1
  end
  return dropped, true
end

-- Whether there is room, once as many of the expired sessions are dropped as it takes.
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
