-- A topic's history is one key, a stream, so that nothing can be lost without the rest: eviction, expiry and deletion take all.
-- The ID of an entry is its offset, and when it was stored in milliseconds. A consumer group that nobody reads with says by its
-- name in which epoch and in which life of the server the topic is, and by its last ID what the last offset is; that is there when
-- all entries are gone.
local topic = {offset = 0, begun = 0}

local function offset(id) return tonumber(string.match(id, '^%d+')) end
local function stored(id) return tonumber(string.match(id, '%d+$')) end

-- open finds out about the topic of a key. It begins one if there is none and create is set; fresh is an epoch for that. It
-- returns false if there is none.
local function open(key, create, fresh, persistent)
	if redis.call('EXISTS', key) == 1 then
		for _, fields in ipairs(redis.call('XINFO', 'GROUPS', key)) do
			local group = {}
			for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
			local epoch, before = string.match(group['name'], '^(%d+) (%x+)$')
			if epoch then
				topic.epoch, topic.name, topic.offset = epoch, group['name'], offset(group['last-delivered-id'])
				if before ~= life then
					redis.call('XGROUP', 'DESTROY', key, topic.name)
					if not persistent then topic.epoch = fresh end
					topic.name = topic.epoch .. ' ' .. life
					redis.call('XGROUP', 'CREATE', key, topic.name, group['last-delivered-id'])
				end
				return true
			end
		end
		redis.call('DEL', key) -- nothing of ours
	end
	if not create then return false end
	topic.epoch, topic.name, topic.begun = fresh, fresh .. ' ' .. life, 1
	redis.call('XGROUP', 'CREATE', key, topic.name, '0', 'MKSTREAM')
	return true
end

-- trim forgets what was stored age milliseconds ago or before.
local function trim(key, age)
	local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
	if not first or stored(first[1]) > now - age then return end
	local old, young = offset(first[1]), topic.offset + 1
	while young - old > 1 do
		local middle = math.floor((old + young) / 2)
		local entry = redis.call('XRANGE', key, int(middle), '+', 'COUNT', 1)[1]
		if not entry or stored(entry[1]) > now - age then
			young = middle
		else
			old = offset(entry[1])
		end
	end
	redis.call('XTRIM', key, 'MINID', '=', int(young))
end

-- live says when a topic is forgotten: one with messages that never grow too old is not, others are when they have had none for
-- idle milliseconds.
local function live(key, age, idle)
	if topic.offset == 0 then
		redis.call('PEXPIRE', key, int(idle))
	elseif age > 0 then
		redis.call('PEXPIRE', key, int(age + idle))
	else
		redis.call('PERSIST', key)
	end
end
