-- Dissector for Weft's overlay: UDP datagrams that hold an inner IP packet and nothing else.
-- flannel's udp backend and the kernel's FOU (ipproto 4) have the same bytes.
--
-- Copy it to the plugin directory that Wireshark shows in Help > About > Folders, or run
--
--     tshark -X lua_script:weft.lua -r capture.pcapng
--
-- Set another port than 8285 in Preferences > Protocols > WEFT, or with -o weft.port:PORT.

local weft = Proto("weft", "Weft overlay")

local version = ProtoField.uint8("weft.version", "IP version of the inner packet")
local length = ProtoField.uint16("weft.length", "Length of the inner packet")
weft.fields = { version, length }

local wrong_version = ProtoExpert.new("weft.bad_version", "The inner packet is neither IPv4 nor IPv6",
  expert.group.MALFORMED, expert.severity.ERROR)
local wrong_length = ProtoExpert.new("weft.bad_length",
  "The datagram and the inner packet differ in length", expert.group.MALFORMED, expert.severity.ERROR)
weft.experts = { wrong_version, wrong_length }

weft.prefs.port = Pref.uint("UDP port", 8285, "Port of the overlay")

local ipv4, ipv6 = Dissector.get("ip"), Dissector.get("ipv6")
local ipv6_header = 40

-- inner_length returns the length that the header of the inner packet declares, or nil if the
-- datagram is too short to have one.
local function inner_length(buffer, ip_version)
  if ip_version == 4 and buffer:len() >= 20 then
    return buffer(2, 2):uint()
  elseif ip_version == 6 and buffer:len() >= ipv6_header then
    return buffer(4, 2):uint() + ipv6_header
  end
end

function weft.dissector(buffer, pinfo, tree)
  if buffer:len() == 0 then
    return 0
  end
  local ip_version = buffer(0, 1):bitfield(0, 4)
  local subtree = tree:add(weft, buffer())
  subtree:add(version, buffer(0, 1), ip_version)
  local declared = inner_length(buffer, ip_version)
  if declared then
    subtree:add(length, declared):set_generated()
  end
  pinfo.cols.protocol = "WEFT"
  if ip_version ~= 4 and ip_version ~= 6 then
    subtree:add_proto_expert_info(wrong_version)
    return buffer:len()
  end
  if declared ~= buffer:reported_len() then
    subtree:add_proto_expert_info(wrong_length)
  end
  if not declared then
    return buffer:len()
  end
  local inner = ip_version == 4 and ipv4 or ipv6
  inner:call(buffer():tvb(), pinfo, tree)
  return buffer:len()
end

local ports, registered = DissectorTable.get("udp.port"), nil

local function register()
  if registered then
    ports:remove(registered, weft)
  end
  registered = weft.prefs.port
  ports:add(registered, weft)
end

weft.prefs_changed = register
register()
